"""What a model has to know about the pictures it answers for."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from hne_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """Shape, classes and normalisation of a set of pictures.

    Attributes:
      shape: `(height, width, channels)`.
      class_names: name of each label.
      mean: per channel over the training images, in uint8 units (0 to 255).
      std: standard deviation, likewise.
      central_crop: see `Pixels.central_crop`.
    """

    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    central_crop: float = 0.0

    @classmethod
    def from_data(cls, images: Any, class_names: Sequence[str]) -> "ImageSpec":
        """Measures the statistics of training images.

        Args:
          images: uint8 array `[examples, height, width, channels]`.
          class_names: name of each label.

        Raises:
          InputError: for images of another type or shape, or without any.

        Example:
          >>> ImageSpec.from_data(x_train, ["cat", "dog"]).shape
          (32, 32, 3)
        """
        shape, dtype = tuple(images.shape), str(images.dtype)
        if dtype != "uint8" or len(shape) != 4 or 0 in shape:
            raise InputError(
                "images must be uint8 of shape [examples, height, width, channels], "
                f"got {dtype} of {list(shape)}"
            )
        axes = (0, 1, 2)
        # A channel that never changes is left as it is.
        std = [float(value) or 1.0 for value in images.std(axis=axes)]
        mean = [float(value) for value in images.mean(axis=axes)]
        return cls(shape[1:], tuple(class_names), tuple(mean), tuple(std))

    def __post_init__(self) -> None:
        # JSON has lists where this has tuples.
        for name in ("shape", "class_names", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
