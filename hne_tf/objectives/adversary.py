"""A network that tells pairs of features of one image from those of two images of its class."""

import itertools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from hne_tf.errors import InputError
from hne_tf.objectives.labels import class_numbers

# Bounds of a log-ratio that the features learn from.
_LARGEST = 10.0
_SLOPE = 0.2


class Discriminator:
    """What estimates how much two leaves know of each other beyond the class.

    It maps the features of leaves i < j, the class, i and j to the log of how much likelier
    the two are of one image than of two images of the class. One network serves all pairs.

    Args:
      nodes: names of the nodes whose features are paired, averaged over pixels; none for
        the logits of leaves.
      pairs: pairs that a step takes, in turn; 0 for all.
      width: units of each of its two hidden layers.
      learning_rate: of Adam, which trains it beside the model.

    Attributes:
      optimizer: what trains it, made by `build`; its steps choose the pairs.

    Raises:
      InputError: for a number out of range.
    """

    def __init__(self, nodes: Sequence[str], pairs: int, width: int, learning_rate: float) -> None:
        if pairs < 0:
            raise InputError(f"pairs must be 0 for all or more, got {pairs}")
        if width < 1:
            raise InputError(f"width must be 1 or more, got {width}")
        if not learning_rate > 0:
            raise InputError(f"learning_rate must be above 0, got {learning_rate}")
        self._nodes = tuple(nodes)
        self._count = pairs
        self._width = width
        self._learning_rate = learning_rate
        self.optimizer: keras.Optimizer | None = None
        self._network: keras.Model | None = None

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """What `optimizer` trains; made by `build`."""
        return self._network.trainable_variables if self._network else []

    def build(self, answer: Any) -> None:
        """Makes the variables for what a model answers, see `Objective.call`.

        Raises:
          InputError: for fewer than two features, or features of different widths.
        """
        features, classes = self._listed(answer)
        widths = {each.shape[-1] for each in features}
        if len(widths) > 1:
            raise InputError(
                "a discriminator must have features of one width, got "
                + ", ".join(f"{each.shape[-1]}" for each in features)
            )
        if len(features) < 2:
            raise InputError(
                f"a discriminator must have two features to pair or more, got {len(features)}"
            )
        pairs = list(itertools.combinations(range(len(features)), 2))
        if self._count > len(pairs):
            raise InputError(f"pairs must be at most the {len(pairs)} there are, got {self._count}")
        # Neighbours in turn would share a leaf.
        self._pairs = np.random.default_rng(0).permutation(pairs).astype("int32")
        self._classes = classes
        inputs = keras.Input((2 * widths.pop() + classes + 2 * len(features),), dtype="float32")
        x = inputs
        for _ in range(2):
            x = keras.layers.Dense(self._width, dtype="float32")(x)
            x = keras.layers.LeakyReLU(_SLOPE, dtype="float32")(x)
        self._network = keras.Model(inputs, keras.layers.Dense(1, dtype="float32")(x)[:, 0])
        self.optimizer = keras.optimizers.Adam(self._learning_rate)
        self.optimizer.build(self.trainable_variables)

    def loss(self, y_true: Any, y_pred: Any) -> Any:
        """How badly it tells them apart, `[batch]`; no gradient reaches the features."""
        features = ops.stop_gradient(self._features(y_pred))
        same, other, counted = self._log_ratios(y_true, features, self._network)
        wrong = ops.softplus(-same) + ops.softplus(other)
        return ops.mean(wrong, axis=1) * counted

    def redundancy(self, y_true: Any, y_pred: Any) -> Any:
        """`sum_{i < j} I(z_i; z_j | y) / (N - 1)` of N features, in nats; a scalar.

        The estimate is that of Donsker and Varadhan, of a step's pairs for all. No gradient
        reaches the discriminator.
        """
        frozen = [ops.stop_gradient(ops.convert_to_tensor(v)) for v in self.trainable_variables]

        def log_ratio(x: Any) -> Any:
            return self._network.stateless_call(frozen, [], x)[0]

        features = self._features(y_pred)
        same, other, counted = self._log_ratios(y_true, features, log_ratio)
        same, other = (ops.clip(each, -_LARGEST, _LARGEST) for each in (same, other))
        total = ops.maximum(ops.sum(counted), 1.0)
        weights = counted[:, None] / total
        expected = ops.sum(weights * ops.exp(other), axis=0)
        # No image has another of its class: nothing is known.
        expected = ops.where(ops.any(counted > 0), expected, 1.0)
        of_pairs = ops.sum(weights * same, axis=0) - ops.log(expected)
        return features.shape[1] / 2 * ops.mean(of_pairs)

    def _log_ratios(self, y_true: Any, features: Any, network: Any) -> tuple[Any, Any, Any]:
        """Log-ratios `[batch, pairs]` of one image and of two, and 1 for images that count."""
        if self._network is None:
            raise InputError(
                "a discriminator must be built by `Ensemble.build_adversary` before its loss is "
                "asked for, got none"
            )
        batch, leaves, _ = ops.shape(features)
        numbers = class_numbers(y_true, self._classes)
        partners, counted = next_of_class(numbers)
        first, second = ops.unstack(self._pairs_now(), axis=1)
        classes = ops.one_hot(numbers, self._classes, dtype="float32")
        count = ops.shape(first)[0]
        given = [
            ops.broadcast_to(classes[:, None], (batch, count, self._classes)),
            *(
                ops.broadcast_to(
                    ops.one_hot(each, leaves, dtype="float32")[None], (batch, count, leaves)
                )
                for each in (first, second)
            ),
        ]
        ones = ops.take(features, first, axis=1)
        others = ops.take(features, second, axis=1)

        def log_ratios(seconds: Any) -> Any:
            x = ops.concatenate([ones, seconds, *given], axis=-1)
            flat = ops.reshape(x, (batch * count, x.shape[-1]))
            return ops.reshape(network(flat), (batch, count))

        return log_ratios(others), log_ratios(ops.take(others, partners, axis=0)), counted

    def _pairs_now(self) -> Any:
        """The pairs `[count, 2]` of this step."""
        if not self._count:
            return ops.convert_to_tensor(self._pairs)
        start = ops.cast(self.optimizer.iterations, "int32") * self._count
        rows = (start + ops.arange(self._count)) % len(self._pairs)
        return ops.take(ops.convert_to_tensor(self._pairs), rows, axis=0)

    def _features(self, answer: Any) -> Any:
        """Features `[batch, leaves, width]`, float32."""
        return ops.stack(self._listed(answer)[0], axis=1)

    def _listed(self, answer: Any) -> tuple[list[Any], int]:
        """The feature of each leaf, `[batch, width]`, and the number of classes."""
        if not self._nodes:
            return ops.unstack(ops.cast(answer, "float32"), axis=1), answer.shape[-1]
        # Of feature maps, the mean over pixels.
        features = [
            ops.mean(ops.cast(answer[name], "float32"), axis=tuple(range(1, answer[name].ndim - 1)))
            for name in self._nodes
        ]
        return features, answer["leaf_logits"].shape[-1]


def next_of_class(numbers: Any) -> tuple[Any, Any]:
    """For each image of a batch the next one of its class, the first one after the last.

    Args:
      numbers: class numbers `[batch]`.

    Returns:
      Its row, `[batch]`, and 1.0, or 0.0 where there is no other of the class.
    """
    batch = ops.shape(numbers)[0]
    rows = ops.arange(batch)
    # How far ahead each other row is; an image itself is the last.
    ahead = (rows[None] - rows[:, None] - 1) % batch
    ahead = ops.where(numbers[:, None] == numbers[None], ahead, batch)
    steps = ops.min(ahead, axis=1)
    return (rows + steps + 1) % batch, ops.cast(steps < batch - 1, "float32")
