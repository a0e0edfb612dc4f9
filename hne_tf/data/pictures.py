"""Picture files to the images that a model takes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hne_tf.data.pixels import MODES, Pixels, decode, read_bytes
from hne_tf.errors import InputError

_TOLD_FAILURES = 10


class Pictures(NamedTuple):
    """What could be read, and what could not.

    Attributes:
      images: name and uint8 `[height, width, channels]` of each sound picture.
      failures: a line for each of the others.
    """

    images: list[tuple[str, np.ndarray]]
    failures: list[str]

    def check(self) -> None:
        """Raises `InputError` that tells of the failures, if there are any."""
        if self.failures:
            more = len(self.failures) - _TOLD_FAILURES
            rest = f"; and {more} more" if more > 0 else ""
            raise InputError("; ".join(self.failures[:_TOLD_FAILURES]) + rest)


def read_all(paths: Sequence[str], pixels: Pixels, fit: bool) -> Pictures:
    """Reads picture files one after another, so that one at a time is decoded.

    Args:
      paths: of the files.
      pixels: what a picture becomes.
      fit: whether to fit pictures of another size or other colours, instead of refusing
        them.
    """
    pictures = Pictures([], [])
    for path in paths:
        # A name may hold line breaks, and bytes that are no text.
        name = path if path.isprintable() else repr(path)
        try:
            pictures.images.append((name, _read(path, pixels, fit)))
        except InputError as error:
            pictures.failures.append(f"{path!r} cannot be read: {error}")
    return pictures


def _read(path: str, pixels: Pixels, fit: bool) -> np.ndarray:
    picture = decode(read_bytes(path))
    if not fit and not pixels.fits(picture):
        raise InputError(
            f"a picture must be {pixels.width} x {pixels.height} in mode {MODES[pixels.channels]}, "
            f"got {picture.width} x {picture.height} in mode {picture.mode} (--resize fits it; "
            "so does the --manifest of a model, as the model was trained)"
        )
    return pixels.image(picture)
