"""Random parts of pictures to train on, as pure functions of uniform random numbers."""

import math

import numpy as np

from hne_tf.data.pixels import Window

# Random numbers that a window takes: rows of area, aspect ratio, left and top, of which the
# first that fits is used.
DRAWS = (10, 4)

_LEAST_ASPECT, _GREATEST_ASPECT = 3 / 4, 4 / 3


def random_window(width: int, height: int, least_share: float, draws: np.ndarray) -> Window:
    """A part of a picture of random place, size and aspect ratio.

    Szegedy et al., "Going Deeper with Convolutions", CVPR 2015. If no row of the draws
    gives a part that fits, it is the largest central one of an allowed aspect ratio.

    Args:
      width: of the picture, in pixels.
      height: likewise.
      least_share: of the picture's area, the least to keep.
      draws: in [0, 1), of shape `DRAWS`.
    """
    shares = least_share + (1 - least_share) * draws[:, 0]
    least, greatest = math.log(_LEAST_ASPECT), math.log(_GREATEST_ASPECT)
    aspects = np.exp(least + (greatest - least) * draws[:, 1])
    areas = shares * width * height
    widths = np.maximum(np.rint(np.sqrt(areas * aspects)), 1).astype(int)
    heights = np.maximum(np.rint(np.sqrt(areas / aspects)), 1).astype(int)
    fitting = np.flatnonzero((widths <= width) & (heights <= height))
    if not len(fitting):
        return _central(width, height)
    row = fitting[0]
    kept_width, kept_height = int(widths[row]), int(heights[row])
    left = int(draws[row, 2] * (width - kept_width + 1))
    top = int(draws[row, 3] * (height - kept_height + 1))
    return left, top, left + kept_width, top + kept_height


def _central(width: int, height: int) -> Window:
    kept_width = min(width, max(1, round(height * _GREATEST_ASPECT)))
    kept_height = min(height, max(1, round(width / _LEAST_ASPECT)))
    left, top = (width - kept_width) // 2, (height - kept_height) // 2
    return left, top, left + kept_width, top + kept_height
