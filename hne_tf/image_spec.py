"""What a model has to know about the pictures it answers for."""

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hne_tf.data.pixels import Pixels


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

    def __post_init__(self) -> None:
        # JSON has lists where this has tuples.
        for name in ("shape", "class_names", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def pixels(self) -> "Pixels | None":
        """How a picture becomes an image of this shape; None if a picture cannot."""
        # Imported here: models can do without Pillow.
        from hne_tf.data.pixels import MODES, Pixels

        return Pixels(*self.shape, self.central_crop) if self.shape[-1] in MODES else None
