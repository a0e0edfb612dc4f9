"""What training asks of an objective."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import keras


class Adversary(Protocol):
    """A network of an objective's own, which an optimiser of its own trains beside the model."""

    optimizer: keras.Optimizer
    trainable_variables: Sequence[keras.Variable]

    def build(self, answer: Any | Mapping[str, Any]) -> None:
        """Makes optimiser and variables for symbolic tensors of what `Objective.call` gets."""

    def loss(self, y_true: Any, y_pred: Any | Mapping[str, Any]) -> Any:
        """What it is trained to lessen, `[batch]`; its gradient must not reach the model.

        Nor may that of `Objective.call` reach its variables.
        """


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
      adversary: what is trained beside the model; with it, Keras's `fit` refuses the objective.
    """

    iterations: keras.Variable | None
    activations: Sequence[str]
    teacher: Callable[[Any], Any]
    adversary: Adversary

    def call(self, y_true: Any, y_pred: Any | Mapping[str, Any]) -> Any:
        """A value per example, `[batch]`.

        Args:
          y_true: labels, see `hne_tf.objectives.labels.targets`.
          y_pred: leaf logits `[batch, leaves, classes]`; for an objective that asks for
            activations or has a teacher a dictionary: activations by name, the logits as
            `"leaf_logits"`, and what the teacher gives as `"teacher_logits"`.
        """
