"""Picture files to the images that a model takes."""

import pathlib
import warnings

import numpy as np
from PIL import Image, ImageOps

from hne_tf.errors import InputError

_MODES = {1: "L", 3: "RGB"}


def read_picture(path: str | pathlib.Path) -> Image.Image:
    """Decodes a picture file, turned upright.

    Raises:
      InputError: if the file is missing or not a picture with 8 bits per channel.
    """
    if not pathlib.Path(path).is_file():
        raise InputError(f"picture must be a file, got {str(path)!r}")
    try:
        with warnings.catch_warnings():
            # A few kilobytes can decode to gigabytes; Pillow only warns at first.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(path)
            picture.load()
            picture = ImageOps.exif_transpose(picture)
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise InputError(f"{str(path)!r} cannot be read as a picture: {error}") from error
    if picture.mode.startswith(("I", "F")):
        raise InputError(
            f"picture must have 8 bits per channel, got mode {picture.mode} in {str(path)!r}"
        )
    return picture


def to_image(
    picture: Image.Image, name: str, shape: tuple[int, int, int], resize: bool = False
) -> np.ndarray:
    """Returns the picture as a model's input.

    Args:
      picture: the decoded picture.
      name: what messages call it.
      shape: height, width and channels (1 or 3) of the model's input.
      resize: whether to fit a picture of another size or other channels.

    Returns:
      uint8 `[height, width, channels]`.

    Raises:
      InputError: if the picture does not fit and is not to be resized.
    """
    height, width, channels = shape
    if channels not in _MODES:
        raise InputError(f"a picture can only have 1 or 3 channels, the model takes {channels}")
    mode = _MODES[channels]
    if picture.mode != mode or picture.size != (width, height):
        if not resize:
            raise InputError(
                f"picture must be {width} x {height} in mode {mode}, got "
                f"{picture.width} x {picture.height} in mode {picture.mode}: {name!r} "
                "(--resize fits it)"
            )
        picture = picture.convert(mode).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture, dtype=np.uint8).reshape(shape)
