"""What every loaded data set has, however its batches are made. Imports no TensorFlow."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from hne_tf.data.augmentation import Augmentation
from hne_tf.data.fingerprint import DataRecord
from hne_tf.data.pixels import Pixels
from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class ArraySplit:
    """Examples of one split whose images are in memory.

    Attributes:
      images: uint8 `[examples, height, width, channels]`.
      labels: int32 `[examples]`.
      pixels: what the images become; they are resized unless they have that shape.
    """

    images: np.ndarray = dataclasses.field(repr=False)
    labels: np.ndarray = dataclasses.field(repr=False)
    pixels: Pixels

    # Nothing is decoded, so nothing is skipped; see `EncodedSplit` for these.
    skipped = frozenset()

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.labels)

    def arrays(
        self, indices: np.ndarray, draws: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The examples of `indices`; no part of them is chosen by `draws`."""
        del draws
        images = self.images[indices]
        if images.shape[1:] != self.pixels.shape:
            images = self.pixels.images(images)
        return images, self.labels[indices]


@dataclasses.dataclass(frozen=True)
class LoadedData:
    """A labelled image data set.

    Attributes:
      name: as in the config that loaded it.
      spec: shape, classes and normalisation of the images.
      splits: the examples of `train`, `validation` and `test`.
      augmentation: what is done to training images.
      found: lines that tell a user what the data set consists of.
      fingerprint: tells these data from others, see `fingerprint.DataRecord`.
    """

    name: str
    spec: ImageSpec
    splits: Mapping[str, Any] = dataclasses.field(repr=False)
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    found: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    fingerprint: str = dataclasses.field(default="", repr=False)

    @property
    def record(self) -> DataRecord:
        """What a run remembers of its data."""
        examples = {split: self.examples(split) for split in self.splits}
        return DataRecord(self.fingerprint, self.spec.class_names, examples)

    def examples(self, split: str) -> int:
        """Number of examples in `split`.

        Raises:
          InputError: if there is no such split.
        """
        return self._split(split).examples

    @property
    def skipped(self) -> list[str]:
        """Names of the corrupt images that batches have been made without so far."""
        return sorted(set().union(*(split.skipped for split in self.splits.values())))

    def _split(self, name: str) -> Any:
        if name not in self.splits:
            raise InputError(f"split must be one of {', '.join(SPLITS)}, got {name!r}")
        return self.splits[name]


def check_at_least(name: str, value: int, minimum: int) -> None:
    """Raises `InputError` for a number below a minimum."""
    if value < minimum:
        raise InputError(f"{name} must be at least {minimum}, got {value!r}")
