"""Batches through Keras's layers, whose random numbers are a function of seed and step."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

# Keras has no public name for it.
from keras.src.backend import random_seed_dtype

from hne_tf.data.random_layers import RandomLayers

# Of the distribution that a pair's weights come from, as in its paper for ImageNet; CutMix takes
# the uniform one.
_MIXUP_ALPHA = 0.2


class _Seeds(keras.random.SeedGenerator):
    """The seeds of a step: the n-th one depends on the step's and on n only, not on a state."""

    def __init__(self, seed: tf.Tensor) -> None:
        # Without Keras's own, which makes a variable.
        self.name = "seeds"
        self._seed = seed
        self._drawn = 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        del ordered
        self._drawn += 1
        folded = tf.random.fold_in(self._seed, self._drawn)
        return tf.cast(folded, random_seed_dtype())


class BatchLayers:
    """The layers of some settings.

    Args:
      views: what they do to each view of a batch, see `Augmentation.views`.
      classes: number of classes.
    """

    def __init__(self, views: Sequence[RandomLayers], classes: int) -> None:
        self._classes = classes
        self._views = [_layers(settings) for settings in views]
        self._mixes = any(settings.mix for settings in views)

    def apply(self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> Any:
        """Changes a batch.

        Args:
          images: uint8 `[batch, height, width, channels]`.
          labels: int32 `[batch]`.
          seed: int64 `[2]`, of the step.

        Returns:
          Images of the same shape and type, and labels: as they were, or float32 `[batch,
          classes]` where images are mixed.
        """
        shape = images.shape
        images = tf.cast(images, tf.float32)
        if self._mixes:
            labels = tf.one_hot(labels, self._classes)
        count = len(self._views)
        views = []
        for number, layers in enumerate(self._views):
            # A batch without views is one whose only view has the batch's own seed.
            view_seed = tf.random.fold_in(seed, -number) if number else seed
            views.append(_changed(images[number::count], labels[number::count], layers, view_seed))
        images, labels = (_interleaved(parts) for parts in zip(*views, strict=True))
        images = tf.cast(tf.round(tf.clip_by_value(images, 0.0, 255.0)), tf.uint8)
        return tf.ensure_shape(images, shape), labels


def _layers(settings: RandomLayers) -> list[keras.Layer]:
    # Whatever the user's Keras configuration is.
    plain = {"data_format": "channels_last", "dtype": "float32"}
    layers: list[keras.Layer] = []
    if settings.rand_augment:
        layers.append(keras.layers.RandAugment(factor=settings.rand_augment, **plain))
    if settings.mix == "mixup":
        layers.append(keras.layers.MixUp(_MIXUP_ALPHA, **plain))
    if settings.mix == "cutmix":
        layers.append(keras.layers.CutMix(**plain))
    if settings.random_erasing:
        scale = (0.0, settings.random_erasing**2)
        layers.append(keras.layers.RandomErasing(scale=scale, **plain))
    return layers


def _changed(
    images: tf.Tensor, labels: tf.Tensor, layers: Sequence[keras.Layer], seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Images and labels after all layers, whose random numbers come from the seed."""
    for number, layer in enumerate(layers):
        seeds = _Seeds(tf.random.fold_in(seed, number))
        # RandAugment asks for its own; Keras would track a new one.
        object.__setattr__(layer, "generator", seeds)
        drawn = layer.get_random_transformation(
            {"images": images, "labels": labels}, training=True, seed=seeds
        )
        images = layer.transform_images(images, drawn, training=True)
        labels = layer.transform_labels(labels, drawn, training=True)
    return images, labels


def _interleaved(views: Sequence[tf.Tensor]) -> tf.Tensor:
    """The batch whose rows belong to one view after the other."""
    if len(views) == 1:
        return views[0]
    stacked = tf.stack(views, axis=1)
    return tf.reshape(stacked, [-1, *stacked.shape[2:]])
