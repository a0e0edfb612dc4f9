"""Leaves that are kept from knowing the same things beyond the class."""

from collections.abc import Sequence
from typing import Any

import keras

from hne_tf.errors import InputError
from hne_tf.objectives.adversary import Discriminator
from hne_tf.objectives.independent import Independent
from hne_tf.objectives.ramp import check_ramp, ramped


@keras.saving.register_keras_serializable("hne_tf")
class Dice(Independent):
    """`sum_n CE(f_n, y) + w / (N - 1) sum_{i < j} I(z_i; z_j | y)`.

    The conditional redundancy `I` of features is estimated by a discriminator that is
    trained beside the model. Ramé and Cord, "DICE: Diversity in Deep Ensembles via
    Conditional Redundancy Adversarial Estimation", ICLR 2021; without their bottleneck of
    features, which are as the network gives them. Pairs are of each image's own features
    against those of the next image of its class in what a device gets of a batch.

    `hne-train` and `hne_tf.train` train it; Keras's `fit` has one optimiser.

    Args:
      weight: `w`.
      nodes: names of the nodes whose features are told apart, of one width; by default
        the features are the logits of leaves.
      pairs: pairs of leaves that a step takes, in turn; 0 for all.
      width: units of each of the discriminator's two hidden layers.
      learning_rate: of Adam, which trains the discriminator.
      ramp_steps: steps over which `w` grows linearly from 0.

    See `Independent` for the other arguments.

    Attributes:
      adversary: the discriminator, see `Objective`.

    Raises:
      InputError: for a number out of range.
    """

    def __init__(
        self,
        weight: float = 0.1,
        nodes: Sequence[str] = (),
        pairs: int = 0,
        width: int = 128,
        learning_rate: float = 1e-3,
        ramp_steps: int = 0,
        label_smoothing: float = 0.0,
        views: int = 1,
        name: str = "dice",
        **kwargs: Any,
    ) -> None:
        super().__init__(label_smoothing, views, name=name, **kwargs)
        if not weight >= 0:
            raise InputError(f"weight must be 0 or more, got {weight}")
        self._weight = weight
        self._ramp_steps = check_ramp(ramp_steps)
        self._settings = {"pairs": pairs, "width": width, "learning_rate": learning_rate}
        self.activations = tuple(nodes)
        self.adversary = Discriminator(self.activations, **self._settings)
        self.iterations: keras.Variable | None = None

    def call(self, y_true: Any, y_pred: Any) -> Any:
        leaf_logits = y_pred["leaf_logits"] if self.activations else y_pred
        weight = ramped(self._weight, self._ramp_steps, self.iterations)
        redundancy = weight * self.adversary.redundancy(y_true, y_pred)
        return super().call(y_true, leaf_logits) + redundancy

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **self._settings,
            "weight": self._weight,
            "nodes": self.activations,
            "ramp_steps": self._ramp_steps,
        }
