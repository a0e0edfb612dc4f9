"""Profiles of models: storage, accuracy and latency, measured together and kept in manifests."""

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Sequence

from hne_tf.errors import InputError
from hne_tf.exported.manifest import Manifest
from hne_tf.exported.measurements import Measurement, Storage
from hne_tf.exported.model import ExportedModel
from hne_tf.exported.profiling import latency, runtimes
from hne_tf.tree import is_positive_integer


@dataclasses.dataclass(frozen=True)
class ProfiledModel:
    """A model and what it was measured to be.

    Attributes:
      model: the model.
      manifest: its manifest, with `latency` (see `latency.measure_together`), `litert` and
        `storage` as measured now.
      title: what it is called; `ExportedModel.name` by default.
    """

    model: ExportedModel
    manifest: Manifest
    title: str = ""

    @property
    def name(self) -> str:
        """What people call it."""
        return self.title or self.model.name

    @property
    def mode(self) -> str:
        """See `ExportedModel.mode`."""
        return self.model.mode

    @property
    def accuracy(self) -> dict[int, float]:
        """Held-out accuracy by ensemble size; empty if it was not measured."""
        return self.manifest.accuracy_by_size if self.manifest.accuracy else {}

    @property
    def onednn(self) -> tuple[bool | None, ...]:
        """Whether with oneDNN, of each setting that was measured; None of a TFLite file."""
        measured = self.manifest.latency is not None and self.manifest.latency.onednn is not None
        return (True, False) if measured else (None,)

    @property
    def side_by_side(self) -> tuple[bool, ...]:
        """Whether each operation has one thread, of each setting that was measured."""
        measured = self.manifest.latency
        rows = (
            (*measured.measurements, *measured.other_threads, *measured.other_onednn)
            if measured
            else ()
        )
        return tuple(sorted({False, *(row.side_by_side for row in rows)}))

    @property
    def litert(self) -> "ProfiledModel | None":
        """The TFLite file in a version's folder, if it was measured."""
        if self.manifest.litert is None:
            return None
        own = dataclasses.replace(
            self.manifest, latency=self.manifest.litert.latency, litert=None, storage=None
        )
        file = runtimes.litert_model(self.model)
        return file and ProfiledModel(file, own, f"{self.model.name} by LiteRT")

    def latency(
        self,
        size: int,
        batch_size: int,
        threads: int,
        onednn: bool | None = None,
        side_by_side: bool | None = None,
    ) -> Measurement:
        """See `Manifest.measurement`."""
        return self.manifest.measurement(size, batch_size, threads, onednn, side_by_side)


def profile(
    models: Sequence[ExportedModel],
    threads: Sequence[int] = (1, 2),
    batch_sizes: Sequence[int] = (1,),
    runs: int = 100,
    keep: bool = True,
    report: Callable[[str], None] = print,
) -> list[ProfiledModel]:
    """Measures models side by side.

    Args:
      models: versions and TFLite files.
      threads: numbers of threads that compute; a model's default number, by which
        servers go, is measured besides. So is the TFLite file in a version's folder.
      batch_sizes: images per call; one image, which clients need to know, is
        measured besides.
      runs: timed calls of each ensemble size, batch size and number of threads; with and
        without oneDNN where TensorFlow computes.
      keep: whether the measurements go into manifests: that of a file is replaced,
        and a version, which never changes, is published again as the next one.
      report: gets a line per manifest that is written.

    Returns:
      A profile per model.

    Raises:
      InputError: for a number below 1, the same model twice, or a model that is
        damaged. Nothing is written then.

    Example:
      >>> (profiled,) = profile([hne.load("models/digits/1")], threads=[1], runs=3)
      published models/digits/2: digits/1 with these measurements
      >>> profiled.latency(4, batch_size=1, threads=1).runs
      3
    """
    for name, values in {"threads": threads, "batch sizes": batch_sizes, "runs": [runs]}.items():
        if not values or not all(map(is_positive_integer, values)):
            raise InputError(f"{name} must be 1 or more, got {', '.join(map(str, values))}")
    if not models or len({model.path.resolve() for model in models}) < len(models):
        listed = ", ".join(str(model.path) for model in models)
        raise InputError(f"models must be different paths, got {listed}")
    if keep:
        for model in models:
            model.check_revisable()
    subjects = [runtimes.subjects_of(model, threads) for model in models]
    flat = list(itertools.chain.from_iterable(subjects))
    latencies = iter(latency.measure_together(flat, sorted({1, *batch_sizes}), runs))
    profiles = []
    for model, own in zip(models, subjects, strict=True):
        measured = {"latency": next(latencies), "storage": storage(model)}
        if own[1:]:
            measured["litert"] = runtimes.chosen(next(latencies))
        profiles.append(ProfiledModel(model, dataclasses.replace(model.manifest, **measured)))
    if keep:
        for each in profiles:
            report(_kept(each))
    return profiles


def storage(model: ExportedModel) -> Storage:
    """What the graph and the weights of a model take on disk."""
    compressor = zlib.compressobj(9, wbits=31)
    total = compressed = 0
    for part in model.parts():
        total += len(part)
        compressed += len(compressor.compress(part))
    return Storage(bytes=total, gzip_bytes=compressed + len(compressor.flush()))


def _kept(profiled: ProfiledModel) -> str:
    """Writes the manifest; says where."""
    path = profiled.model.revise(profiled.manifest)
    if path == profiled.model.path:
        return f"written into the manifest of {path}"
    return f"published {path}: {profiled.name} with these measurements"
