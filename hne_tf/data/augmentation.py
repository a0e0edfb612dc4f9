"""Random crops and flips of whole batches, as pure functions of a seed."""

import tensorflow as tf


def augment(images: tf.Tensor, pad_pixels: int, flip: bool, seed: tf.Tensor) -> tf.Tensor:
    """Pads and crops, then mirrors, each image at random.

    Args:
      images: uint8 `[batch, height, width, channels]` of static shape.
      pad_pixels: zeros added on each side before a crop of the original size;
        0 for none.
      flip: whether to mirror half of the images left to right.
      seed: int64 `[2]`.

    Returns:
      Images of the same shape and type.
    """
    if not pad_pixels and not flip:
        return images
    crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))
    batch = images.shape[0]
    offsets = tf.random.stateless_uniform(
        [batch, 2], crop_seed, maxval=2 * pad_pixels + 1, dtype=tf.int32
    )
    flips = tf.random.stateless_uniform([batch], flip_seed, maxval=2, dtype=tf.int32)
    return crop_and_flip(images, pad_pixels, offsets, flips * int(flip))


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
