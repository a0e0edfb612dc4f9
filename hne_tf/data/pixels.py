"""From a picture's bytes to the pixels of a model's input.

Training, evaluation, `hne-predict` and the phone code in docs/mobile.md all get their
pixels this way. This module needs Pillow and NumPy only.
"""

import dataclasses
import io
import pathlib
import stat
from typing import Any

import numpy as np
from PIL import Image

from hne_tf.errors import InputError, in_one_line
from hne_tf.exported.manifest import Manifest
from hne_tf.image_spec import ImageSpec

# Pillow's name of each format that is read, and the suffixes of its files, in lower case.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

# A few kilobytes can decode to gigabytes. Pillow warns above this number of pixels.
MAX_PIXELS = 89_478_485
MAX_BYTES = 2**30

# Pillow's mode of pictures with so many channels.
MODES = {1: "L", 3: "RGB"}
_WHITE = 255
_ORIENTATION_TAG = 0x0112
# What turns a picture upright, by the value of its EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What is the same for every model; a manifest holds it for the clients.
_RULES = {
    "frame": "first",
    "orientation": "exif",
    "background": _WHITE,
    "resize": "bilinear_antialiased",
}

# Left, top, right and bottom of a part of a picture, in pixels.
Window = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Pixels:
    """How a picture becomes the input of a model.

    The first frame is turned upright by its EXIF orientation, cropped, laid on white
    where it is transparent, converted to grey (ITU-R 601) or RGB with 8 bits (the upper
    8 of 16), and resized. The resize is bilinear; in shrinking, the triangle is as wide
    as the step from one pixel to the next ("antialiased"). Colour profiles are not
    applied.

    Attributes:
      height: pixels of the result.
      width: likewise.
      channels: 1 for grey, 3 for RGB.
      central_crop: keeps the central square with sides of this share of the shorter
        side: 0.875 is what "resize to 256, crop 224" keeps. 0 keeps the whole picture,
        whatever its aspect ratio.

    Raises:
      InputError: if a number is out of range.
    """

    height: int
    width: int
    channels: int = 3
    central_crop: float = 0.0

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise InputError(f"images must have a pixel or more, got {self.height} x {self.width}")
        if self.channels not in MODES:
            raise InputError(f"a picture has 1 or 3 channels, the model takes {self.channels}")
        if not 0 <= self.central_crop <= 1:
            raise InputError(f"data.central_crop must lie in [0, 1], got {self.central_crop}")

    @classmethod
    def of(cls, images: ImageSpec) -> "Pixels | None":
        """How a picture becomes an image of a model; None if a picture cannot."""
        if images.shape[-1] not in MODES:
            return None
        return cls(*images.shape, images.central_crop)

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> "Pixels | None":
        """How a picture becomes an input of a published model; None if it does not say.

        Raises:
          InputError: unless the manifest asks for just what this module does.
        """
        if manifest.pixels is None:
            return None
        pixels = cls.from_json(manifest.pixels)
        if pixels.shape != manifest.image_shape:
            raise InputError(
                f"pixels must give images of shape {manifest.image_shape}, as the model takes "
                f"them, got shape {pixels.shape}"
            )
        return pixels

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self.height, self.width, self.channels

    def image(self, picture: Image.Image, window: Window | None = None) -> np.ndarray:
        """The pixels of a decoded picture.

        Args:
          picture: as `decode` returns it.
          window: the part to keep instead of the central one.

        Returns:
          uint8 `[height, width, channels]`.

        Raises:
          InputError: if the colours of the picture cannot be converted.
        """
        window = window or self.central_window(*picture.size)
        if window != (0, 0, *picture.size):
            picture = picture.crop(window)
        converted = _converted(picture, MODES[self.channels])
        resized = converted.resize((self.width, self.height), Image.Resampling.BILINEAR)
        return np.asarray(resized, dtype=np.uint8).reshape(self.shape)

    def images(self, arrays: np.ndarray) -> np.ndarray:
        """The pixels of pictures that are at hand as arrays.

        Args:
          arrays: uint8 `[batch, any height, any width, channels]`.

        Returns:
          uint8 `[batch, height, width, channels]`.
        """
        grey = arrays.shape[-1] == 1
        pictures = map(Image.fromarray, arrays.squeeze(-1) if grey else arrays)
        return np.stack([self.image(picture) for picture in pictures])

    def fits(self, picture: Image.Image) -> bool:
        """Whether a picture has the size and the colours of the input already."""
        return picture.size == (self.width, self.height) and picture.mode == MODES[self.channels]

    def central_window(self, width: int, height: int) -> Window:
        """The part of a picture that is kept."""
        if not self.central_crop:
            return 0, 0, width, height
        side = max(1, int(self.central_crop * min(width, height) + 0.5))
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side

    def to_json(self) -> dict[str, Any]:
        """The `pixels` of a manifest, which `from_json` reads."""
        return {
            "size": [self.height, self.width],
            "channels": self.channels,
            "central_crop": self.central_crop,
            **_RULES,
            "max_pixels": MAX_PIXELS,
        }

    @classmethod
    def from_json(cls, fields: Any) -> "Pixels":
        """Reads the `pixels` of a manifest.

        Raises:
          InputError: unless they ask for just what this module does.
        """
        try:
            rules = dict(fields)
            height, width = rules.pop("size")
            pixels = cls(height, width, rules.pop("channels"), rules.pop("central_crop"))
            # What is too large for this version is a matter of this version.
            rules.pop("max_pixels")
        except InputError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                "pixels must have size, channels, central_crop and max_pixels, "
                f"got {fields!r:.200}: {error!r}"
            ) from None
        # Another rule, or one that this version does not know, would give other pixels.
        if rules != _RULES:
            raise InputError(f"pixels must follow the rules {_RULES}, got {rules!r:.400}")
        return pixels


def read_bytes(path: str | pathlib.Path) -> bytes:
    """The content of a picture file.

    Raises:
      InputError: if it is missing, unreadable, too large or not a regular file; the
        message does not name the path.
    """
    try:
        status = pathlib.Path(path).stat()
        # Opening a pipe would wait for its writer.
        if not stat.S_ISREG(status.st_mode):
            raise InputError("a picture must be a file, got a folder, a pipe or a device")
        if status.st_size > MAX_BYTES:
            raise InputError(f"a picture has at most {MAX_BYTES:,} bytes, got {status.st_size:,}")
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"a picture must be a readable file, got {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"a picture must be a readable file, got {error}") from None


def decode(data: bytes) -> Image.Image:
    """Decodes the first frame of a picture to 8 bits a channel, turned upright.

    Raises:
      InputError: if the data are damaged, too large or in none of `FORMATS`; the
        message does not name the file.
    """
    try:
        with Image.open(io.BytesIO(data), formats=list(FORMATS)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise InputError(
                    f"a picture has at most {MAX_PIXELS:,} pixels, got "
                    f"{picture.width} x {picture.height}"
                )
            picture.load()
            transposition = _transposition(picture)
            shallow = _with_8_bits(picture)
            return shallow if transposition is None else shallow.transpose(transposition)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"a picture has at most {MAX_PIXELS:,} pixels, got more: {in_one_line(error)}"
        ) from None
    except Image.UnidentifiedImageError:
        raise InputError(
            f"a picture must be in the format {', '.join(FORMATS)}, got none of them"
        ) from None
    # Pillow does not document what its decoders raise for a damaged file.
    except Exception as error:
        raise InputError(f"a picture must be sound, got {in_one_line(error)}") from error


def _with_8_bits(picture: Image.Image) -> Image.Image:
    """The picture with the upper 8 of 16 bits; other pictures have 8 already."""
    # Of the modes with more bits, only these have a known range.
    if picture.mode.startswith("I;16") or (picture.mode, picture.format) == ("I", "PPM"):
        return _upper_8_bits(picture)
    if picture.mode in ("I", "F"):
        raise InputError(f"a picture must have 8 or 16 bits a channel, got mode {picture.mode}")
    return picture


def _upper_8_bits(picture: Image.Image) -> Image.Image:
    """A grey picture of 16 bits as one of 8, with alpha if one of its values is transparent."""
    values = np.asarray(picture)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    transparent = picture.info.get("transparency")
    if transparent is None:
        return grey
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", (grey, Image.fromarray(alpha)))


def _transposition(picture: Image.Image) -> Image.Transpose | None:
    """What turns a picture upright; None if it is, or if its EXIF cannot be read."""
    try:
        return _UPRIGHT.get(picture.getexif().get(_ORIENTATION_TAG))
    # As in `decode`. The colours are sound, and viewers show such a picture as it is.
    except Exception:
        return None


def _converted(picture: Image.Image, mode: str) -> Image.Image:
    """The picture in another mode, laid on white where it is transparent."""
    try:
        if picture.has_transparency_data:
            colours = picture.convert("RGBA")
            white = Image.new("RGBA", colours.size, (_WHITE,) * 4)
            picture = Image.alpha_composite(white, colours)
        # A conversion to the same mode would copy the pixels.
        return picture if picture.mode == mode else picture.convert(mode)
    except (ValueError, OSError) as error:
        raise InputError(f"a picture must be grey or coloured, got {in_one_line(error)}") from error
