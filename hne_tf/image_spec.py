"""What a model has to know about the pictures it answers for."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """Shape, classes and normalisation of a set of pictures.

    Attributes:
      shape: `(height, width, channels)`.
      class_names: name of each label.
      mean: per channel over the training images, in uint8 units (0 to 255).
      std: standard deviation, likewise.
    """

    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        # JSON has lists where this has tuples.
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
