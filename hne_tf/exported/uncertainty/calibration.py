"""What makes the probabilities of a model mean what they say.

Manifests are read without NumPy, which is loaded when there are answers.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hne_tf.errors import InputError
from hne_tf.exported.typed_json import Count, Name, Positive, Share

if TYPE_CHECKING:
    import numpy as np


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Temperatures and limits of prediction sets, for each size from 1 to N.

    Attributes:
      split: name of the split that they are fitted on.
      examples: number of its images.
      temperatures: of each size, see `evaluation.calibration`.
      coverage: probability that a prediction set holds the label.
      limits: of each size, by method of prediction sets; of the model's own probabilities.
      applied: whether those have the temperatures.
    """

    split: Name
    examples: Count
    temperatures: tuple[Positive, ...]
    coverage: Share
    limits: Mapping[str, tuple[Share, ...]]
    applied: bool = False

    def check(self, leaves: int) -> None:
        """Raises `InputError` unless there is a number for each size up to all leaves."""
        for name, row in {"temperatures": self.temperatures, **self.limits}.items():
            if len(row) != leaves:
                raise InputError(
                    f"calibration.{name} must have {leaves} numbers, one for each size, "
                    f"got {len(row)}"
                )

    def probabilities(self, answers: "np.ndarray", sizes: "int | np.ndarray") -> "np.ndarray":
        """Answers with the temperature of their sizes.

        Args:
          answers: the model's probabilities, `[images, classes]`; they stay as they are
            where the model applies the temperatures.
          sizes: number of leaves in the answers, or in each.
        """
        import numpy as np

        if self.applied:
            return answers
        temperatures = np.reshape(_of(self.temperatures, sizes), (-1, 1))
        # In proportion to the likeliest class, whose power is 1.
        powers = (answers / answers.max(axis=-1, keepdims=True)) ** (1 / temperatures)
        return powers / powers.sum(axis=-1, keepdims=True)

    def sets(
        self, answers: "np.ndarray", sizes: "int | np.ndarray", method: str = "lac"
    ) -> "np.ndarray":
        """The classes among which the right one is with the probability `coverage`.

        Args:
          answers: the model's probabilities, `[images, classes]`.
          sizes: number of leaves in the answers, or in each.
          method: one of `prediction_sets.METHODS`.

        Returns:
          bool `[images, classes]`.

        Raises:
          InputError: for a method without limits.

        Example:
          >>> answer = exported.predict(images)
          >>> calibration = exported.manifest.calibration
          >>> calibration.sets(answer.probabilities, answer.sizes).sum(axis=1)
          array([1, 3])
        """
        from hne_tf.exported.uncertainty import prediction_sets

        if method not in self.limits:
            raise InputError(f"prediction sets must be {' or '.join(self.limits)}, got {method!r}")
        return prediction_sets.sets(method, answers, _of(self.limits[method], sizes))


def _of(values: Sequence[float], sizes: "int | np.ndarray") -> "np.ndarray":
    import numpy as np

    return np.asarray(values)[np.asarray(sizes) - 1]
