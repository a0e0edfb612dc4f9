"""Random crops, flips and colours of whole batches, as pure functions of a seed.

Settings are for every backend. The functions are TensorFlow's, which they import;
`data.arrays.augmentation` has those of arrays.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from hne_tf.data import windows
from hne_tf.data.random_layers import RandomLayers
from hne_tf.errors import InputError

if TYPE_CHECKING:
    import tensorflow as tf


class Draws(NamedTuple):
    """What is random about a batch, a row per image: workers take their rows of it.

    Attributes:
      offsets: int32 `[batch, 2]`, top and left of the crop in the padded image.
      flips: int32 `[batch]`, 1 to mirror, else 0.
      colors: int64 `[batch, 2]`, seeds of the colour jitter.
      windows: float32 `[batch, *windows.DRAWS]`, of the crops that are made in decoding.
    """

    offsets: tf.Tensor
    flips: tf.Tensor
    colors: tf.Tensor
    windows: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to training images, once they are pixels.

    Attributes:
      pad_pixels: zeros added on each side before a crop of the original size
        at a random position; 0 for none.
      flip: whether to mirror half of the images left to right.
      color_jitter: brightness changes by up to this share of the range of
        pixels, contrast and saturation by factors of `1 - color_jitter` to
        `1 + color_jitter`; 0 for none.
      layers: what Keras's layers do to the batch then.
      views: instead of it, what they do to each of several views: row r of a batch
        belongs to view `r mod len(views)`. Leaves learn from one view each, see
        `hne_tf.objectives.cross_entropy`; empty for the same rows for all.

    Raises:
      InputError: if a number is out of range.
    """

    pad_pixels: int = 0
    flip: bool = False
    color_jitter: float = 0.0
    layers: RandomLayers = dataclasses.field(default_factory=RandomLayers)
    views: tuple[RandomLayers, ...] = ()

    def __post_init__(self) -> None:
        if self.pad_pixels < 0:
            raise InputError(f"data.pad_pixels must be at least 0, got {self.pad_pixels}")
        if not 0 <= self.color_jitter < 1:
            raise InputError(f"data.color_jitter must lie in [0, 1), got {self.color_jitter}")

    @property
    def in_views(self) -> tuple[RandomLayers, ...]:
        """What Keras's layers do to each view of a batch; empty if they do nothing."""
        views = self.views or (self.layers,)
        return views if any(views) else ()

    def draw(self, batch_size: int, seed: tf.Tensor) -> Draws:
        """Everything random about a batch of images.

        Args:
          batch_size: number of images.
          seed: int64 `[2]`.
        """
        import tensorflow as tf

        crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))
        color_seed, window_seed = (tf.random.fold_in(seed, number) for number in (2, 3))
        offsets = tf.random.stateless_uniform(
            [batch_size, 2], crop_seed, maxval=2 * self.pad_pixels + 1, dtype=tf.int32
        )
        flips = tf.random.stateless_uniform([batch_size], flip_seed, maxval=2, dtype=tf.int32)
        return Draws(
            offsets,
            flips * int(self.flip),
            tf.random.stateless_uniform([batch_size, 2], color_seed, None, None, tf.int64),
            tf.random.stateless_uniform([batch_size, *windows.DRAWS], window_seed),
        )

    def apply(self, images: tf.Tensor, draws: Draws) -> tf.Tensor:
        """Crops, mirrors and colours each image by its row of the draws.

        Args:
          images: uint8 `[batch, height, width, channels]` of static shape; three
            channels for a colour jitter.
          draws: of `batch` rows.

        Returns:
          Images of the same shape and type.
        """
        import tensorflow as tf

        if self.pad_pixels:
            images = crop_and_flip(images, self.pad_pixels, draws.offsets, draws.flips)
        elif self.flip:
            # Image by image: those that stay as they are cost nothing.
            images = tf.map_fn(
                lambda each: tf.cond(
                    each[1] == 1, lambda: tf.reverse(each[0], [1]), lambda: each[0]
                ),
                (images, draws.flips),
                fn_output_signature=tf.TensorSpec(images.shape[1:], tf.uint8),
            )
        if self.color_jitter:
            images = tf.map_fn(
                lambda each: jitter_colors(each[0], self.color_jitter, each[1]),
                (images, draws.colors),
                fn_output_signature=tf.TensorSpec(images.shape[1:], tf.uint8),
            )
        return images


def crop_and_flip(
    images: tf.Tensor, pad_pixels: int, offsets: tf.Tensor, flips: tf.Tensor
) -> tf.Tensor:
    """Crops each zero-padded image at its offset and mirrors it where told.

    Args:
      images: uint8 `[batch, height, width, channels]` of static shape.
      pad_pixels: zeros added on each side.
      offsets: int32 `[batch, 2]`, top and left of the crop in the padded image.
      flips: int32 `[batch]`, 1 to mirror the crop left to right, else 0.

    Returns:
      Images of the same shape and type.
    """
    import tensorflow as tf

    batch, height, width, channels = images.shape
    margin = [pad_pixels, pad_pixels]
    padded = tf.pad(images, [[0, 0], margin, margin, [0, 0]])
    rows = offsets[:, :1] + tf.range(height)
    columns = tf.range(width)
    columns = tf.where(flips[:, None] == 1, width - 1 - columns, columns) + offsets[:, 1:]
    # One gather of pixels does both, over the whole batch: no loop over images.
    first_rows = tf.range(batch)[:, None] * (height + 2 * pad_pixels)
    pixels = (first_rows + rows)[:, :, None] * (width + 2 * pad_pixels) + columns[:, None, :]
    return tf.gather(tf.reshape(padded, [-1, channels]), pixels)


def jitter_colors(image: tf.Tensor, strength: float, seed: tf.Tensor) -> tf.Tensor:
    """Changes saturation, contrast and brightness of an image at random.

    Args:
      image: uint8 `[height, width, 3]`.
      strength: above 0 and below 1, see `Augmentation.color_jitter`.
      seed: int64 `[2]`.

    Returns:
      An image of the same shape and type.
    """
    import tensorflow as tf

    seeds = tf.unstack(tf.random.split(seed, 3))
    image = tf.image.convert_image_dtype(image, tf.float32)
    # Saturation first: it takes pixels in [0, 1], which the others may leave.
    factors = 1 - strength, 1 + strength
    image = tf.image.stateless_random_saturation(image, *factors, seeds[0])
    image = tf.image.stateless_random_contrast(image, *factors, seeds[1])
    image = tf.image.stateless_random_brightness(image, strength, seeds[2])
    return tf.image.convert_image_dtype(image, tf.uint8, saturate=True)
