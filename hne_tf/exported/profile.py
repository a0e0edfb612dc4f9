"""Profiles of models: storage, accuracy and latency, measured together and kept in manifests."""

import dataclasses
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hne_tf.errors import InputError
from hne_tf.exported import latency, tflite_file, versions
from hne_tf.exported.manifest import MANIFEST, read_manifest
from hne_tf.tree import is_positive_integer

# What TensorFlow loads of a version; its manifest and its warm-up requests are extras.
_SAVED_MODEL_FILES = ("saved_model.pb", "variables/*")
_READ_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Profile:
    """A model and what it was measured to be.

    Attributes:
      path: a version's folder or a `.tflite` file.
      manifest: its manifest, with `latency` (see `latency.measure_together`) and
        `storage` (see `storage`) as measured now.
    """

    path: pathlib.Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """`<model>/<version>`, or the stem of a file."""
        if self.path.is_dir():
            return "/".join(self.path.resolve().parts[-2:])
        return self.path.stem

    @property
    def mode(self) -> str:
        """`SavedModel`, or what a TFLite file is made of."""
        return "SavedModel" if self.path.is_dir() else self.manifest["mode"]

    @property
    def accuracy(self) -> dict[int, float]:
        """Held-out accuracy by ensemble size."""
        by_size = self.manifest["accuracy"]["by_size"]
        return {size: by_size[str(size)] for size in self.manifest["sizes"]}

    def latency(self, size: int, batch_size: int, threads: int) -> dict[str, Any]:
        """The row of an ensemble size, see `latency.measure`."""
        latency = self.manifest["latency"]
        wanted = (f"ensemble_{size}", batch_size, threads)
        return next(
            row
            for row in latency["measurements"] + latency["other_threads"]
            if (row["signature"], row["batch_size"], row["threads"]) == wanted
        )


def profile(
    paths: Sequence[pathlib.Path],
    threads: Sequence[int] = (1, 2),
    batch_sizes: Sequence[int] = (1,),
    runs: int = 100,
    keep: bool = True,
    report: Callable[[str], None] = print,
) -> list[Profile]:
    """Measures models side by side.

    Args:
      paths: versions' folders and `.tflite` files.
      threads: numbers of threads that compute; a model's default number, by which
        servers go, is measured besides.
      batch_sizes: images per call; one image, which clients need to know, is
        measured besides.
      runs: timed calls of each ensemble size, batch size and number of threads.
      keep: whether the measurements go into manifests: that of a file is replaced,
        and a version, which never changes, is published again as the next one.
      report: gets a line per manifest that is written.

    Returns:
      A profile per path.

    Raises:
      InputError: for a number below 1, a path that is no model, or a model that is
        damaged. Nothing is written then.
    """
    for name, values in {"threads": threads, "batch sizes": batch_sizes, "runs": [runs]}.items():
        if not values or not all(map(is_positive_integer, values)):
            raise InputError(f"{name} must be 1 or more, got {', '.join(map(str, values))}")
    if not paths or len({path.resolve() for path in paths}) < len(paths):
        raise InputError(f"models must be different paths, got {', '.join(map(str, paths))}")
    before = [_described(path) for path in paths]
    if keep:
        for path in filter(pathlib.Path.is_dir, paths):
            versions.check_version(path)
    subjects = [
        latency.Subject(
            path,
            tuple(f"ensemble_{size}" for size in manifest["sizes"]),
            tuple(sorted({*threads, latency.default_threads(path)})),
        )
        for path, manifest in zip(paths, before, strict=True)
    ]
    latencies = latency.measure_together(subjects, sorted({1, *batch_sizes}), runs)
    profiles = [
        Profile(path, {**manifest, "latency": latency, "storage": storage(path)})
        for path, manifest, latency in zip(paths, before, latencies, strict=True)
    ]
    if keep:
        for each in profiles:
            report(_kept(each))
    return profiles


def storage(path: pathlib.Path) -> dict[str, int]:
    """What a model takes on disk, without its manifest.

    Args:
      path: a version's folder, of which the graph and the variables count, or a
        `.tflite` file.

    Returns:
      `bytes`, and `gzip_bytes`: what they compress to, which is how apps travel and
      where weights that are pruned or clustered gain.
    """
    compressor = zlib.compressobj(9, wbits=31)
    total = compressed = 0
    for part in _parts(path):
        total += len(part)
        compressed += len(compressor.compress(part))
    return {"bytes": total, "gzip_bytes": compressed + len(compressor.flush())}


def _parts(path: pathlib.Path) -> Iterator[bytes]:
    if not path.is_dir():
        yield tflite_file.read_flatbuffer(path)
        return
    for pattern in _SAVED_MODEL_FILES:
        for file in sorted(path.glob(pattern)):
            with file.open("rb") as stream:
                while part := stream.read(_READ_BYTES):
                    yield part


def _described(path: pathlib.Path) -> dict[str, Any]:
    """The manifest of a model, if it says what a profile needs."""
    if path.is_dir():
        manifest = read_manifest(path)
    elif path.suffix == ".tflite":
        manifest = tflite_file.read_manifest(path)
    else:
        raise InputError(f"a model must be a version's folder or a .tflite file, got {str(path)!r}")
    try:
        described = Profile(path, manifest)
        complete = bool(described.accuracy and described.mode)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"a model's manifest must tell sizes, accuracy and a file's mode, got {str(path)!r} "
            f"without {error}"
        ) from None
    if not complete:
        raise InputError(f"a model must have an ensemble size, got {str(path)!r} without any")
    return manifest


def _kept(profile: Profile) -> str:
    """Writes the manifest; says where."""
    if profile.path.is_dir():
        version = versions.revise(profile.path, {MANIFEST: json.dumps(profile.manifest, indent=2)})
        return f"published {version}: {profile.name} with these measurements"
    tflite_file.write_manifest(profile.path, profile.manifest)
    return f"written into the manifest of {profile.path}"
