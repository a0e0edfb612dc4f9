"""The manifest of a published model: what a client or an operator has to know of it.

This is the one reader and the one writer, for versions' folders and TFLite files. The keys of
the JSON are the fields of `Manifest`, beside `format` and what `Manifest.record` holds. What was
not measured is absent. This module needs no TensorFlow.
"""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.exported import typed_json
from hne_tf.exported.interface import (
    EnsembleSignature,
    LeavesSignature,
    ModelInput,
    Normalisation,
    StepSignature,
    check_leaves,
    check_signatures,
    check_steps,
)
from hne_tf.exported.measurements import (
    Accuracy,
    Cost,
    EarlyStopping,
    LiteRTLatency,
    MeasuredLatency,
    Measurement,
    Storage,
    relative_time,
)
from hne_tf.exported.typed_json import Count, Name
from hne_tf.exported.uncertainty.calibration import Calibration
from hne_tf.exported.versions import MANIFEST, version_folder
from hne_tf.tree import Paths, Tree

FORMAT = 1

# Of a text; one with 20,000 classes has one. Parsing can take 25 times as much memory.
MOST_BYTES = 8 * 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Flatbuffer:
    """Length and SHA-256 of the model in a TFLite file."""

    bytes: Count
    sha256: Name


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a published model is, and what it was measured to be.

    Attributes:
      model: name that it is served under.
      average: how leaves are averaged, see `averaging.AVERAGES`.
      sizes: exported ensemble sizes, increasing; the last is the number of leaves.
      signatures: those that take images, among them `ensemble_<size>` for each size.
      steps: all depth-first steps; step n is `steps[n - 1]`.
      leaves: signatures of some leaves, for answers that several servers compute together.
      classes: name of each class.
      input: of the signatures.
      branching: of a `Tree`.
      exits: of `Exits`; just one of the two is given.
      cost: by size, of one image in one call.
      accuracy: on held-out images.
      early_stopping: thresholds for mean costs per image.
      calibration: temperatures and prediction sets.
      latency: on the machine where the model was exported or profiled.
      litert: of the TFLite file beside a SavedModel, on the same machine.
      storage: bytes of graph and weights.
      mode: what the numbers in a TFLite file are, one of `tflite_file.MODES`.
      pixels: how a picture becomes an input, as JSON values.
      versions: of the packages that made the model.
      flatbuffer: of a TFLite file.
      record: JSON values by key of what else is known, such as the `step` of the run
        that the model comes from. What a later version adds is kept here.

    Raises:
      InputError: if the parts do not fit each other.
    """

    model: Name
    average: Name
    sizes: tuple[Count, ...]
    signatures: tuple[EnsembleSignature, ...]
    steps: tuple[StepSignature, ...]
    classes: tuple[str, ...]
    input: ModelInput
    branching: tuple[Count, ...] | None = None
    exits: Count | None = None
    cost: Mapping[Count, Cost] = dataclasses.field(default_factory=dict)
    accuracy: Accuracy | None = None
    early_stopping: EarlyStopping | None = None
    calibration: Calibration | None = None
    latency: MeasuredLatency | None = None
    litert: LiteRTLatency | None = None
    storage: Storage | None = None
    mode: Name | None = None
    pixels: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    flatbuffer: Flatbuffer | None = None
    leaves: tuple[LeavesSignature, ...] = ()
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.classes:
            raise InputError("classes must be one or more, got none")
        self._check_tree()
        check_steps(self.steps)
        check_signatures(self.signatures, self.sizes, len(self.steps))
        check_leaves(self.leaves, self.average, len(self.steps))
        _check_by_size("cost", self.cost or None, self.sizes)
        _check_by_size("accuracy.by_size", self.accuracy and self.accuracy.by_size, self.sizes)
        for point in self.early_stopping.curve if self.early_stopping else ():
            if len(point.thresholds) != len(self.steps) - 1:
                raise InputError(
                    f"early_stopping must have {len(self.steps) - 1} thresholds at each target, "
                    f"one for each size but the last, got {len(point.thresholds)}"
                )
        if self.calibration:
            self.calibration.check(len(self.steps))
        _check_record(self.record)

    @classmethod
    def of_tree(
        cls,
        tree: Paths,
        model: str,
        classes: Sequence[str],
        image_shape: Sequence[int],
        *,
        sizes: Sequence[int] | None = None,
        average: str = "logits",
        serving_default: bool = True,
        normalisation: Normalisation | None = None,
        **others: Any,
    ) -> "Manifest":
        """The manifest of a model with all steps of a tree.

        Args:
          tree: a `Tree` or `Exits`.
          model: name that the model is served under.
          classes: name of each class.
          image_shape: `(height, width, channels)`.
          sizes: ensemble sizes with a signature, `tree.sizes` by default.
          average: how leaves are averaged.
          serving_default: whether the full ensemble has a signature of this name too.
          normalisation: inside the graph.
          others: further attributes.
        """
        sizes = tuple(sizes or tree.sizes)
        ensembles = [EnsembleSignature(f"ensemble_{size}", size) for size in sizes]
        if serving_default:
            ensembles = [EnsembleSignature("serving_default", tree.leaves), *ensembles]
        return cls(
            model=model,
            average=average,
            sizes=sizes,
            signatures=tuple(ensembles),
            steps=tuple(map(StepSignature.of, tree.steps)),
            classes=tuple(classes),
            input=ModelInput("images", "uint8", (None, *image_shape), normalisation),
            **dataclasses.asdict(tree),
            **others,
        )

    @classmethod
    def from_text(cls, text: str | bytes, source: str) -> "Manifest":
        """Reads JSON.

        Args:
          text: what `to_text` wrote, in this version or an earlier one.
          source: where it comes from, for messages.

        Raises:
          InputError: for any other text.
        """
        if len(text) > MOST_BYTES:
            raise InputError(f"{source} must have at most {MOST_BYTES} bytes, got more")
        content = typed_json.parse(text, source)
        found = content.get("format") if isinstance(content, dict) else content
        if type(found) is not int or found != FORMAT:
            raise InputError(f"{source} must have format {FORMAT}, got {found!r:.40}")
        fields = {field.name for field in dataclasses.fields(cls)} - {"record"}
        known = {key: content.pop(key) for key in fields & content.keys()}
        del content["format"]
        try:
            return typed_json.decode(cls, {**known, "record": content}, "manifest")
        except InputError as error:
            raise InputError(f"{error} in {source}") from None

    def to_text(self) -> str:
        """The manifest as JSON, ASCII.

        Raises:
          InputError: if it were longer than a reader takes.
        """
        text = json.dumps(self.to_json(), indent=2) + "\n"
        if len(text) > MOST_BYTES:
            raise InputError(f"a manifest must have at most {MOST_BYTES} bytes, got {len(text)}")
        return text

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        values = typed_json.encode(dataclasses.replace(self, record={}))
        return {"format": FORMAT, **values, **self.record}

    @functools.cached_property
    def tree(self) -> Paths:
        """The tree of the networks."""
        return Exits(self.exits) if self.branching is None else Tree(self.branching)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self.input.shape[1:]

    @property
    def accuracy_by_size(self) -> dict[int, float]:
        """Held-out accuracy of the exported sizes.

        Raises:
          InputError: if it was not measured.
        """
        if self.accuracy is None:
            raise InputError(self._lacks("the accuracy of every ensemble size", "none"))
        return {size: self.accuracy.by_size[size] for size in self.sizes}

    @property
    def latency_ms(self) -> dict[int, dict[int, float]]:
        """Measured latency by batch size and ensemble size: 95th percentile, without transport.

        Raises:
          InputError: if a size has no latency of one image.
        """
        sizes = {f"ensemble_{size}": size for size in self.sizes}
        rows: dict[int, dict[int, float]] = {}
        for row in self._measured():
            if row.signature in sizes:
                rows.setdefault(row.batch_size, {})[sizes[row.signature]] = row.p95_ms
        if missing := sorted(set(self.sizes) - rows.get(1, {}).keys()):
            rule = "a latency at batch size 1 for every ensemble size"
            raise InputError(self._lacks(rule, f"none for {missing}"))
        return rows

    @property
    def litert_is_faster(self) -> bool:
        """Whether LiteRT was measured to be faster than TensorFlow."""
        if self.litert is None or self.latency is None:
            return False
        return relative_time(self.litert.measurements, self.latency.measurements) < 1

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes that every ensemble size was measured with, increasing.

        Raises:
          InputError: if there are none, or a size was measured with others.
        """
        measured: dict[str, set[int]] = {f"ensemble_{size}": set() for size in self.sizes}
        for row in self._measured():
            measured.get(row.signature, set()).add(row.batch_size)
        some = set().union(*measured.values())
        if not some or any(each != some for each in measured.values()):
            found = {name: sorted(each) for name, each in measured.items()}
            rule = "latencies of the same batch sizes for every ensemble size"
            raise InputError(self._lacks(rule, repr(found)))
        return tuple(sorted(some))

    def measurement(
        self,
        size: int,
        batch_size: int,
        threads: int | None = None,
        onednn: bool | None = None,
        side_by_side: bool | None = None,
    ) -> Measurement:
        """The measured latency of an ensemble size.

        Args:
          size: one of `sizes`.
          batch_size: images per call.
          threads: that compute; by default the number that servers go by.
          onednn: whether with oneDNN; by default the faster setting.
          side_by_side: see `MeasuredLatency.rows`.

        Raises:
          InputError: if it was not measured.
        """
        for row in self._measured(threads, onednn, side_by_side):
            if (row.signature, row.batch_size) == (f"ensemble_{size}", batch_size):
                return row
        by = "" if threads is None else f" by {threads} threads"
        rule = f"the latency of ensemble size {size} at batch size {batch_size}{by}"
        raise InputError(self._lacks(rule, "none"))

    def thresholds(self, multiply_adds: float) -> list[float]:
        """Thresholds of early stopping for a mean cost per image.

        Args:
          multiply_adds: mean per image that is allowed.

        Returns:
          A threshold for each size from 1 to N - 1, see `EarlyStopping.thresholds`.

        Raises:
          InputError: if there are none, or none for a cost as low.
        """
        if self.early_stopping is None or not self.early_stopping.curve:
            rule = "thresholds of early stopping"
            found = "none: export a model of several leaves again, with validation data"
            raise InputError(self._lacks(rule, found))
        return self.early_stopping.thresholds(multiply_adds)

    def temperature(self, size: int) -> float:
        """What the model divides the logits of a size by."""
        applied = self.calibration and self.calibration.applied
        return self.calibration.temperatures[size - 1] if applied else 1.0

    def _measured(self, *setting: Any) -> Iterable[Measurement]:
        return () if self.latency is None else self.latency.rows(*setting)

    def _lacks(self, rule: str, found: str) -> str:
        return f"the manifest of {self.model!r} must hold {rule}, got {found}"

    def _check_tree(self) -> None:
        """Raises `InputError` unless there is one tree, with as many leaves as steps."""
        if (self.branching is None) == (self.exits is None):
            raise InputError(
                "either branching or exits must be given, "
                f"got {self.branching!r:.60} and {self.exits!r}"
            )
        # Each factor is looked at by itself: the product could be a huge number.
        factors = (self.exits,) if self.branching is None else self.branching
        small = max(factors, default=0) <= len(self.steps) and sum(f > 1 for f in factors) < 64
        if not factors or not small or math.prod(factors) != len(self.steps):
            raise InputError(
                "steps must lead to the leaves of the tree one by one, "
                f"got {len(self.steps)} steps in a tree of {factors!r:.60}"
            )


def read_manifest(path: str | pathlib.Path) -> Manifest:
    """Reads the manifest of a version.

    Args:
      path: the version's folder, or that of the model's versions for the newest, or the
        file of the manifest itself.

    Raises:
      InputError: for anything else.
    """
    path = pathlib.Path(path)
    file = version_folder(path) / MANIFEST if path.is_dir() else path
    try:
        with file.open("rb") as stream:
            text = stream.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"a manifest must be a readable file, got {str(file)!r}: {reason}"
        ) from None
    return Manifest.from_text(text, repr(str(file)))


def _check_by_size(name: str, by_size: Mapping[int, Any] | None, sizes: Sequence[int]) -> None:
    """Raises `InputError` if a size is without a value; None is for what was not measured."""
    missing = [] if by_size is None else sorted(set(sizes) - by_size.keys())
    if missing:
        raise InputError(f"{name} must hold every size, got none for {missing!r:.60}")


def _check_record(record: Mapping[str, Any]) -> None:
    """Raises `InputError` unless a record can be written and read."""
    taken = {"format", *(field.name for field in dataclasses.fields(Manifest))} - {"record"}
    if clash := sorted(taken & record.keys()):
        raise InputError(f"record must not hold keys of the manifest, got {', '.join(clash)}")
    try:
        json.dumps(record, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"record must hold JSON values: {error}") from None
