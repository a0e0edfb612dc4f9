"""Sets of classes that hold the right one with a stated probability.

A class is in the set if its score is at most a limit, which is fitted on held-out images (split
conformal prediction). The methods differ in the score:

- `lac`, least ambiguous sets with bounded error levels (Sadinle et al., "Least Ambiguous
  Set-Valued Classifiers With Bounded Error Levels", JASA 2019): 1 less the class's probability.
  The smallest sets; one can be empty.
- `aps`, adaptive prediction sets (Romano et al., "Classification with Valid and Adaptive
  Coverage", NeurIPS 2020): the probability of all likelier classes together. The likeliest class
  is in every set, and hard images have larger ones.
"""

from collections.abc import Callable, Mapping

import numpy as np

from hne_tf.errors import InputError


def _lac(probabilities: np.ndarray) -> np.ndarray:
    return 1 - probabilities


def _aps(probabilities: np.ndarray) -> np.ndarray:
    order = np.argsort(-probabilities, axis=-1, kind="stable")
    falling = np.take_along_axis(probabilities, order, axis=-1)
    # Sums of rounded numbers.
    likelier = np.clip(np.cumsum(falling, axis=-1) - falling, 0, 1)
    found = np.empty_like(likelier)
    np.put_along_axis(found, order, likelier, axis=-1)
    return found


METHODS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"lac": _lac, "aps": _aps}


def scores(method: str, probabilities: np.ndarray) -> np.ndarray:
    """How badly each class fits an answer, from 0 to 1.

    Args:
      method: one of `METHODS`.
      probabilities: `[..., classes]`.

    Returns:
      float64, the same shape.

    Raises:
      InputError: for an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"prediction sets must be {' or '.join(METHODS)}, got {method!r}")
    return METHODS[method](np.asarray(probabilities, np.float64))


def sets(method: str, probabilities: np.ndarray, limit: float | np.ndarray) -> np.ndarray:
    """The classes in the set of each image, bool `[images, classes]`.

    Args:
      method: one of `METHODS`.
      probabilities: `[images, classes]`.
      limit: one for all images or one for each.
    """
    return scores(method, probabilities) <= np.reshape(limit, (-1, 1))
