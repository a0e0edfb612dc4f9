"""What training asks of an objective."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import keras


class Objective(Protocol):
    """A `keras.losses.Loss` over the leaves of an ensemble. All attributes are optional.

    A class of your own is registered with Keras, so that `.keras` files hold it:
    `@keras.saving.register_keras_serializable("my_package")`.

    Attributes:
      iterations: None until training sets it to the optimiser's step counter, for what
        changes as training goes on. Only set where the class has it.
      activations: names of nodes, such as `"block1.node0"`, whose activations the
        objective asks for.
      teacher: what maps the images of a batch to something that the objective learns from.
    """

    iterations: keras.Variable | None
    activations: Sequence[str]
    teacher: Callable[[Any], Any]

    def call(self, y_true: Any, y_pred: Any | Mapping[str, Any]) -> Any:
        """A value per example, `[batch]`.

        Args:
          y_true: labels, see `hne_tf.objectives.labels.targets`.
          y_pred: leaf logits `[batch, leaves, classes]`; for an objective that asks for
            activations or has a teacher a dictionary: activations by name, the logits as
            `"leaf_logits"`, and what the teacher gives as `"teacher_logits"`.
        """
