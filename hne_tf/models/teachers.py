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
        if len(mean) != len(std):
            raise InputError(f"teachers need a mean and std of each channel, got {mean} and {std}")
        self._models = tuple(models)
        self._mean, self._std = tuple(mean) or (0.0,), tuple(std) or (1.0,)

    def __call__(self, images: Any) -> Any:
        """Logits of each teacher for pixels, `[batch, teachers, classes]`, no gradient.

        Raises:
          InputError: for pictures of another size than a teacher takes.
        """
        size = tuple(images.shape[1:])
        for model in self._models:
            taken = getattr(model, "input_shape", None)
            if taken is not None and any(
                side not in (None, given) for side, given in zip(taken[1:], size, strict=True)
            ):
                raise InputError(
                    f"a teacher must take the pictures that are trained on, {size}, got "
                    f"{model.name!r} for {tuple(taken[1:])}"
                )
        logits = ops.stack([self._logits(model, images) for model in self._models], axis=1)
        return ops.stop_gradient(logits)

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
