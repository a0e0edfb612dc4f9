"""Trained networks from outside, whose answers an ensemble learns from."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from hne_tf.errors import InputError
from hne_tf.models import averaging
from hne_tf.models.ensemble import Ensemble
from hne_tf.models.functional import classifier

# Of a probability whose log is taken.
_SMALLEST = 1e-7


class Teachers:
    """Networks that answer for a batch as they are: nothing trains them.

    Args:
      models: ensembles of ours, which answer with all leaves, or Keras models of images
        `[batch, height, width, channels]` to logits `[batch, classes]`, or to probabilities
        where a functional model ends in a softmax.
      mean: of the channels of the pixels 0 to 255 that Keras models were trained on; empty
        for models that take pixels.
      std: likewise.

    Raises:
      InputError: for no model, or statistics that do not belong together.
    """

    def __init__(
        self,
        models: Sequence[keras.Model],
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        if not models:
            raise InputError("teachers must be one Keras model or more, got none")
        if len(mean) != len(std) or min(std, default=1.0) <= 0:
            raise InputError(
                "teachers need a mean and a std above 0 of each channel, got "
                f"{tuple(mean)} and {tuple(std)}"
            )
        self._models = tuple(models)
        self._mean, self._std = tuple(mean) or (0.0,), tuple(std) or (1.0,)

    def __call__(self, images: Any) -> Any:
        """Logits of each teacher for pixels, `[batch, teachers, classes]`, no gradient.

        Raises:
          InputError: for pictures of another size than a teacher takes, or teachers of
            different classes.
        """
        for model in self._models:
            _check_pictures(model, tuple(images.shape[1:]))
        logits = [self._logits(model, images) for model in self._models]
        if len(classes := {each.shape[-1] for each in logits}) > 1:
            raise InputError(
                f"teachers must have the same classes, got {', '.join(map(str, sorted(classes)))}"
            )
        return ops.stop_gradient(ops.stack(logits, axis=1))

    def _logits(self, model: keras.Model, images: Any) -> Any:
        if isinstance(model, Ensemble):
            leaf_logits = ops.cast(model(images, training=False), "float32")
            leaves = model.tree.leaves
            return averaging.ensemble_log_probabilities(leaf_logits, [leaves], model.average)[:, 0]
        pixels = (ops.cast(images, "float32") - ops.array(self._mean)) / ops.array(self._std)
        answer = ops.cast(model(pixels, training=False), "float32")
        if classifier.gives_probabilities(model):
            return ops.log(ops.maximum(answer, _SMALLEST))
        return answer


def _check_pictures(model: keras.Model, size: tuple[int, ...]) -> None:
    """Raises `InputError` unless a teacher takes pictures of a size, or does not say."""
    taken = getattr(model, "input_shape", None)
    if not isinstance(taken, tuple):
        return
    sides = taken[1:]
    if len(sides) != len(size) or any(
        side not in (None, given) for side, given in zip(sides, size, strict=True)
    ):
        raise InputError(
            f"a teacher must take the pictures that are trained on, {size}, got "
            f"{model.name!r} for {sides}"
        )
