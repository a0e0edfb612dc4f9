"""What a data set gives before batches are made of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

# ImageNet's mean and standard deviation per channel, in uint8 units.
IMAGENET_STATISTICS = (123.68, 116.28, 103.53), (58.40, 57.12, 57.38)


@dataclasses.dataclass(frozen=True)
class Source:
    """Classes, statistics and identity of a data set.

    Attributes:
      class_names: name of each label.
      statistics: mean and standard deviation per channel over the training images, in
        uint8 units (0 to 255).
      fingerprint: tells these data from others, such as name and version.
      found: lines that tell a user what the set consists of.
    """

    class_names: tuple[str, ...]
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    fingerprint: str
    found: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)


@dataclasses.dataclass(frozen=True)
class ArraySource(Source):
    """A data set whose images are in memory.

    Attributes:
      arrays: of `train`, `validation` and `test`: images uint8
        `[examples, height, width, channels]` and labels int `[examples]`.
    """

    arrays: Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class PictureSource(Source):
    """A data set of encoded pictures, decoded when a batch needs them.

    Attributes:
      readers: of `train`, `validation` and `test`: number of examples, and what gives
        the encoded picture of an index, see `encoded.Fetch`.
    """

    readers: Mapping[str, tuple[int, Any]]
