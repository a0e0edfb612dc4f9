"""Encoded pictures to pixels: only the part that is needed is decoded."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from hne_tf.errors import InputError

# Maps the size of a picture, int32 `[2]` (height, width), to the top, left, height and width of
# the part to keep, int32 `[4]`.
Window = Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Crops:
    """Which part of a picture is kept, and the size that it is brought to.

    Attributes:
      image_size: pixels a side of the result.
      random_resized_crop: in training, a window at a random place, of at least
        this share of the picture's area and of an aspect ratio between 3/4 and
        4/3 (Szegedy et al., Going Deeper with Convolutions, CVPR 2015); 0 to
        keep the same part as in evaluation.
      central_crop: in evaluation, the central square with sides of this share
        of the picture's shorter side: 0.875 is what "resize to 256, crop 224"
        keeps. 0 keeps the whole picture, squeezed into a square.

    Raises:
      InputError: if a number is out of range.
    """

    image_size: int
    random_resized_crop: float = 0.0
    central_crop: float = 0.0

    def __post_init__(self) -> None:
        for name in ("random_resized_crop", "central_crop"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"data.{name} must lie in [0, 1], got {getattr(self, name)}")

    def evaluated(self, encoded: tf.Tensor) -> tf.Tensor:
        """An image as it is evaluated, uint8 `[image_size, image_size, 3]`."""
        return decode(encoded, self._central_window, self.image_size)

    def trained_on(self, encoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """The same for training, its window a function of `seed`, int64 `[2]`."""
        if not self.random_resized_crop:
            return self.evaluated(encoded)
        return decode(encoded, lambda size: self._random_window(size, seed), self.image_size)

    def _central_window(self, size: tf.Tensor) -> tf.Tensor:
        kept = size
        if self.central_crop:
            side = tf.cast(tf.reduce_min(size), tf.float32) * self.central_crop
            kept = tf.fill([2], tf.maximum(tf.cast(tf.round(side), tf.int32), 1))
        return tf.concat([(size - kept) // 2, kept], 0)

    def _random_window(self, size: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        begin, kept, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.concat([size, [3]], 0),
            bounding_boxes=tf.zeros([0, 0, 4]),
            seed=seed,
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(self.random_resized_crop, 1.0),
            use_image_if_no_bounding_boxes=True,
        )
        return tf.concat([begin[:2], kept[:2]], 0)


def decode(encoded: tf.Tensor, window: Window, image_size: int) -> tf.Tensor:
    """Decodes the part of a picture in a window and resizes it.

    Of a JPEG, what lies outside the window is not decoded.

    Args:
      encoded: string scalar, a JPEG, PNG, GIF (its first frame) or BMP.
      window: chooses the part by the size of the picture.
      image_size: height and width to return.

    Returns:
      uint8 `[image_size, image_size, 3]`.
    """

    def decode_window() -> tf.Tensor:
        part = window(tf.image.extract_jpeg_shape(encoded)[:2])
        return tf.image.decode_and_crop_jpeg(encoded, part, channels=3)

    def decode_whole() -> tf.Tensor:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        top, left, height, width = tf.unstack(window(tf.shape(image)[:2]))
        return image[top : top + height, left : left + width]

    return resize(tf.cond(tf.io.is_jpeg(encoded), decode_window, decode_whole), image_size)


def resize(images: tf.Tensor, image_size: int) -> tf.Tensor:
    """Bilinear and antialiased: uint8 `[…, height, width, channels]` to squares."""
    resized = tf.image.resize(images, [image_size, image_size], antialias=True)
    return tf.saturate_cast(tf.round(resized), tf.uint8)


def attempt(
    decode_image: Callable[[], tf.Tensor], spec: tf.TensorSpec
) -> tuple[tf.Tensor, tf.Tensor]:
    """An image and True, or zeros and False if it cannot be decoded.

    Args:
      decode_image: returns the image; traced into a graph.
      spec: shape and type of the image.
    """
    # What catches an error in a graph is a data set that leaves out its element.
    decoded = tf.data.Dataset.range(1).map(lambda _: (decode_image(), True)).ignore_errors()
    return decoded.reduce((tf.zeros(spec.shape, spec.dtype), False), lambda _, image: image)
