"""Keras's own layers that change training images and mix them, as pure functions of a seed.

Settings load without Keras; `layers` has what they make.
"""

import dataclasses
from collections.abc import Sequence

from hne_tf.errors import InputError

# Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; Yun et al., "CutMix",
# ICCV 2019.
MIXES = ("", "mixup", "cutmix")


@dataclasses.dataclass(frozen=True)
class RandomLayers:
    """What Keras's layers do to a batch of training images.

    Attributes:
      rand_augment: strength of two operations of `keras.layers.RandAugment` (Cubuk et
        al., NeurIPS 2020), the same for a batch; up to 1, 0 for none.
      mix: `"mixup"` or `"cutmix"`, in which each image is mixed with another one of its
        batch; labels are then rows of probabilities.
      random_erasing: largest side of the rectangle that `keras.layers.RandomErasing`
        (Zhong et al., AAAI 2020) fills with noise, as a share of the image's; up to 1, 0
        for none.

    Raises:
      InputError: for another mix or a number out of range.
    """

    rand_augment: float = 0.0
    mix: str = ""
    random_erasing: float = 0.0

    def __post_init__(self) -> None:
        if self.mix not in MIXES:
            raise InputError(f"data.mix must be mixup, cutmix or empty, got {self.mix!r}")
        for name in ("rand_augment", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"data.{name} must lie in [0, 1], got {getattr(self, name)}")

    def __bool__(self) -> bool:
        """Whether they change anything."""
        return self != RandomLayers()


def views(texts: Sequence[str], shared: RandomLayers) -> tuple[RandomLayers, ...]:
    """What Keras's layers do to each view of a batch, for leaves with views of their own.

    Args:
      texts: a view each: settings such as `"mix=cutmix"`, several with commas in between;
        empty for the shared ones alone.
      shared: settings that views do not change.

    Raises:
      InputError: for a setting that there is not, or whose value cannot be.
    """
    return tuple(dataclasses.replace(shared, **_settings(text)) for text in texts)


def _settings(text: str) -> dict[str, str | float]:
    kinds = {field.name: type(field.default) for field in dataclasses.fields(RandomLayers)}
    settings = {}
    for part in text.split(",") if text else ():
        try:
            name, value = part.strip().split("=")
            settings[name] = kinds[name](value)
        except (KeyError, ValueError):
            raise InputError(
                "data.views must set rand_augment, mix or random_erasing, such as mix=cutmix, "
                f"got {part.strip()!r}"
            ) from None
    return settings
