"""A published model, whatever form it has: a SavedModel in its version's folder, or a TFLite file.

Rooms that profile, verify, report or answer take an `ExportedModel` and never ask for its form.
This module loads no TensorFlow before a SavedModel computes.
"""

import abc
import functools
import itertools
import pathlib
import pkgutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hne_tf.errors import InputError
from hne_tf.exported import manifest as manifests
from hne_tf.exported.manifest import Manifest
from hne_tf.exported.session import AnytimeSession, Clock, Prediction, StepTimes
from hne_tf.exported.steps import RunnableSignature, SignatureSteps, StepRunner, check_images
from hne_tf.exported.versions import version_folder

# The registry of formats that are one file, by suffix: import path of the `ExportedModel` that
# opens it. A new format needs a line here.
FILE_FORMATS: Mapping[str, str] = {
    ".tflite": "hne_tf.exported.tflite_model:TFLiteModel",
}


def load(path: str | pathlib.Path, threads: int | None = None) -> "ExportedModel":
    """Opens a published model.

    The first call that computes loads the graph. `ExportedModel.warm_up` does so beforehand.

    Args:
      path: the folder of a model's versions, of which the newest is taken; a version's
        folder; or a TFLite file.
      threads: that compute a TFLite file, as many as LiteRT likes by default. Those of
        TensorFlow are a setting of the process (`tf.config.threading`).

    Raises:
      InputError: for anything else, a manifest that is damaged, or a TFLite file that is
        not whole.

    Example:
      >>> model = hne.load("models/digits")
      >>> model.path, model.sizes, model.image_shape
      (PosixPath('models/digits/1'), (1, 2, 4), (8, 8, 1))
      >>> model.predict(images, size=2).probabilities.shape
      (2, 10)
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise InputError(
            "a model must be a version's folder, a folder of versions or a TFLite file, "
            f"got {str(path)!r}, which is not there"
        )
    if not path.is_dir():
        kind = FILE_FORMATS.get(path.suffix, FILE_FORMATS[".tflite"])
        return pkgutil.resolve_name(kind).open(path, threads)
    if threads is not None:
        raise InputError(
            "threads are set for a TFLite file; a SavedModel has those of the process, "
            f"got threads={threads!r}"
        )
    from hne_tf.exported.saved_model import SavedModel

    folder = version_folder(path)
    return SavedModel(folder, manifests.read_manifest(folder))


class ExportedModel(abc.ABC):
    """A published model in this process; for one thread at a time.

    Attributes:
      path: the version's folder or the file.
      manifest: what the model is, and what it was measured to be.
      times: what steps took lately; all sessions add to it.

    Args:
      path: see above.
      manifest: see above.
      clock: seconds.
    """

    # Whether the number of threads belongs to the model, not to the process.
    has_own_threads: bool
    # Whether TensorFlow computes it, with oneDNN or without.
    has_onednn: bool

    def __init__(
        self, path: pathlib.Path, manifest: Manifest, clock: Clock = time.perf_counter
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.times = StepTimes()
        self._clock = clock
        self._signatures: dict[str, RunnableSignature] = {}

    @property
    def sizes(self) -> tuple[int, ...]:
        """Exported ensemble sizes, increasing; the last is the number of leaves."""
        return self.manifest.sizes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""
        return self.manifest.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)` of the uint8 images."""
        return self.manifest.image_shape

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What people call the model: `<model>/<version>`, or the stem of a file."""

    @property
    @abc.abstractmethod
    def mode(self) -> str:
        """What it is made of: `"SavedModel"`, or what the numbers in a file are."""

    @property
    @abc.abstractmethod
    def default_threads(self) -> int:
        """Threads that compute it unless told otherwise."""

    @property
    @abc.abstractmethod
    def threads(self) -> int:
        """Threads that compute it in this process."""

    @abc.abstractmethod
    def parts(self) -> Iterator[bytes]:
        """Yields graph and weights as they lie on disk, without the manifest."""

    @abc.abstractmethod
    def check_revisable(self) -> None:
        """Raises `InputError` unless `revise` can be called."""

    @abc.abstractmethod
    def revise(self, manifest: Manifest) -> pathlib.Path:
        """Keeps the model with another manifest.

        A file is replaced. A version never changes, so it is published again as the next one.

        Returns:
          Where the model with that manifest lies.
        """

    @abc.abstractmethod
    def signature_names(self) -> frozenset[str]:
        """Names of all signatures in the graph, whatever the manifest says.

        Raises:
          InputError: if the graph cannot be loaded.
        """

    @abc.abstractmethod
    def _load_signature(self, name: str) -> RunnableSignature:
        """A signature that is in the graph."""

    def signature(self, name: str) -> RunnableSignature:
        """Returns a signature to call.

        Args:
          name: e.g. `"ensemble_4"` or `"step_1"`.

        Raises:
          InputError: if the graph cannot be loaded or has no such signature.

        Example:
          >>> outputs = model.signature("ensemble_4").run({"images": images})
          >>> sorted(outputs)
          ['logits', 'probabilities']
        """
        if name not in self._signatures:
            if name not in self.signature_names():
                raise InputError(
                    "a model must have the signatures of its manifest, "
                    f"got {str(self.path)!r} without {name}"
                )
            self._signatures[name] = self._load_signature(name)
        return self._signatures[name]

    @functools.cached_property
    def steps(self) -> StepRunner:
        """The depth-first steps; loads the graph."""
        steps = self.manifest.steps
        signatures = {step.signature: self.signature(step.signature) for step in steps}
        average = self.manifest.average
        return SignatureSteps(steps, self.image_shape, self.class_names, average, signatures)

    def session(self, images: Any) -> AnytimeSession:
        """Starts a walk through the leaves, which can be stopped at any of them and go on.

        Args:
          images: uint8 `[batch, height, width, channels]`.

        Raises:
          InputError: for images that the model cannot take.

        Example:
          >>> for size, probabilities in model.session(images):
          ...     print(size, probabilities.shape)
          1 (2, 10)
          2 (2, 10)
          3 (2, 10)
          4 (2, 10)
        """
        return AnytimeSession(self.steps, images, self.times, self._clock)

    def predict(
        self, images: Any, size: int | None = None, *, deadline_ms: float | None = None
    ) -> Prediction:
        """Answers for a batch of images, from an ensemble size or as time allows.

        Args:
          images: uint8 `[batch, height, width, channels]`.
          size: number of leaves, from 1 to all, which is the default. An exported size
            takes one call, another one as many steps.
          deadline_ms: instead of a size: time from this call to its answer. As many
            leaves are computed as fit, by what steps took before. Call `warm_up` first:
            the time of a step that was never taken is not known.

        Returns:
          The answer, with the size that it is of for each image.

        Raises:
          InputError: for images, a size or a deadline that cannot be.

        Example:
          >>> model.predict(images).sizes
          array([4, 4])
          >>> model.predict(images, size=3).sizes
          array([3, 3])
          >>> model.warm_up(batch_size=2)
          >>> model.predict(images, deadline_ms=5).probabilities.argmax(axis=1).shape
          (2,)
        """
        if deadline_ms is not None:
            if size is not None:
                raise InputError(
                    "one of size and deadline_ms can be given, "
                    f"got size={size!r} and deadline_ms={deadline_ms!r}"
                )
            return self.session(images).run(deadline_ms=deadline_ms)
        started = self._clock()
        size = self.sizes[-1] if size is None else size
        self.manifest.tree.check_size(size)
        images = np.asarray(images)
        check_images(images, self.image_shape)
        if size in self.sizes:
            outputs = self.signature(f"ensemble_{size}").run({"images": images})
            probabilities = np.asarray(outputs["probabilities"])
        else:
            *_, (_, probabilities) = itertools.islice(self.session(images), size)
        elapsed_ms = 1000 * (self._clock() - started)
        return Prediction(np.full(len(images), size), probabilities, elapsed_ms)

    def warm_up(self, batch_size: int = 1, repeats: int = 32) -> None:
        """Loads the graph, and measures what each step takes for a batch size.

        Args:
          batch_size: images per call.
          repeats: timed walks through all steps.

        Raises:
          InputError: unless both are 1 or more, or if the graph cannot be loaded.
        """
        self.times.measure(self.steps, batch_size, repeats, self._clock)
