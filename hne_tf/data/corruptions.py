"""Common corruptions of images, from TensorFlow Datasets.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019, with the severities of ImageNet-C: for
small pictures they are harsh. Only those that need no further packages.
"""

import zlib

import numpy as np

from hne_tf.errors import InputError, extra

with extra("data"):
    from tensorflow_datasets.image_classification import corruptions as tfds_corruptions

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "speckle_noise",
    "contrast",
    "jpeg_compression",
    "pixelate",
)
SEVERITIES = range(1, 6)
# Pixelating divides a side by four.
_LEAST_SIDE = 4


def corrupt(images: np.ndarray, name: str, severity: int, first_index: int = 0) -> np.ndarray:
    """Corrupted copies of images, the same at every call.

    Args:
      images: uint8 `[batch, height, width, channels]`, grey or coloured.
      name: one of `CORRUPTIONS`.
      severity: from 1 to 5.
      first_index: number of the first image in its split; noise depends on an
        image's number, not on the batch that it comes in.

    Returns:
      The same shape and type.

    Raises:
      InputError: for an unknown corruption or severity, or images of fewer than
        4 pixels a side or other than 1 or 3 channels.
    """
    if name not in CORRUPTIONS:
        raise InputError(f"corruption must be one of {', '.join(CORRUPTIONS)}, got {name!r}")
    if severity not in SEVERITIES:
        raise InputError(f"severity must be an integer from 1 to 5, got {severity!r}")
    height, width, channels = images.shape[1:]
    if min(height, width) < _LEAST_SIDE or channels not in (1, 3):
        raise InputError(
            f"corruptions need images of {_LEAST_SIDE} pixels a side or more and 1 or 3 channels, "
            f"got {images.shape[1:]}"
        )
    function = getattr(tfds_corruptions, name)
    # TFDS draws from NumPy's global generator, which others use too.
    state = np.random.get_state()
    try:
        corrupted = []
        for index, image in enumerate(images, start=first_index):
            np.random.seed(zlib.crc32(f"{name} {severity} {index}".encode()))
            # Grey pictures have no axis of channels in PIL, which some corruptions use.
            changed = function(image[..., 0] if channels == 1 else image, severity)
            corrupted.append(np.asarray(changed, np.uint8).reshape(image.shape))
    finally:
        np.random.set_state(state)
    return np.stack(corrupted) if corrupted else images.copy()
