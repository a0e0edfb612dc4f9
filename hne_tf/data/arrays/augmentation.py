"""`Augmentation` of NumPy arrays, as a pure function of a seed and a step."""

import numpy as np

from hne_tf.data import windows
from hne_tf.data.augmentation import Augmentation, Draws


def draw(augmentation: Augmentation, batch_size: int, seed: int, step: int) -> Draws:
    """Everything random about the batch of a step.

    The ranges are those of `Augmentation.draw`; the numbers themselves differ.

    Args:
      augmentation: what is to be drawn for.
      batch_size: number of images.
      seed: of the run.
      step: of the batch.
    """
    random = np.random.default_rng([seed, step])
    return Draws(
        random.integers(0, 2 * augmentation.pad_pixels + 1, (batch_size, 2), np.int32),
        random.integers(0, 2, batch_size, np.int32) * int(augmentation.flip),
        random.integers(0, 2**63, (batch_size, 2), np.int64),
        random.random((batch_size, *windows.DRAWS), np.float32),
    )


def apply(augmentation: Augmentation, images: np.ndarray, draws: Draws) -> np.ndarray:
    """Crops, mirrors and colours each image by its row of the draws.

    Args:
      augmentation: what is done.
      images: uint8 `[batch, height, width, channels]`; three channels for a colour jitter.
      draws: of `batch` rows.

    Returns:
      Images of the same shape and type.
    """
    if augmentation.pad_pixels or augmentation.flip:
        images = _crop_and_flip(images, augmentation.pad_pixels, draws.offsets, draws.flips)
    if augmentation.color_jitter:
        jittered = [
            _jitter_colors(image, augmentation.color_jitter, seed)
            for image, seed in zip(images, draws.colors, strict=True)
        ]
        images = np.stack(jittered)
    return images


def _crop_and_flip(
    images: np.ndarray, pad_pixels: int, offsets: np.ndarray, flips: np.ndarray
) -> np.ndarray:
    """Crops each zero-padded image at its offset, and mirrors it where told."""
    height, width = images.shape[1:3]
    margin = (pad_pixels, pad_pixels)
    padded = np.pad(images, ((0, 0), margin, margin, (0, 0)))
    result = np.empty_like(images)
    # A copy of a block an image is faster than one gather of all pixels.
    for image, (top, left), flip, row in zip(padded, offsets, flips, result, strict=True):
        crop = image[top : top + height, left : left + width]
        row[:] = crop[:, ::-1] if flip else crop
    return result


def _jitter_colors(image: np.ndarray, strength: float, seed: np.ndarray) -> np.ndarray:
    """Changes saturation, contrast and brightness of an image `[height, width, 3]` at random."""
    random = np.random.default_rng(seed)
    saturation, contrast = random.uniform(1 - strength, 1 + strength, 2)
    pixels = image / 255
    # In HSV, a channel's distance to the largest one is proportional to the saturation.
    value = pixels.max(axis=-1, keepdims=True)
    distances = value - pixels
    greatest = value / np.maximum(distances.max(axis=-1, keepdims=True), 1e-6)
    pixels = value - distances * np.minimum(saturation, greatest)
    mean = pixels.mean(axis=(0, 1))
    pixels = (pixels - mean) * contrast + mean + random.uniform(-strength, strength)
    # Rounded as TensorFlow does.
    return np.clip(pixels * 255.5, 0, 255).astype(np.uint8)
