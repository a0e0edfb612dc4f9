"""Examples that are kept as encoded pictures and decoded when a batch needs them."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hne_tf.data.pixels import Pixels, decode
from hne_tf.data.windows import random_window
from hne_tf.errors import InputError

if TYPE_CHECKING:
    import tensorflow as tf


class Encoded(NamedTuple):
    """An encoded picture.

    Attributes:
      name: what messages call it: one line, without control characters.
      label: number of its class.
      read: returns its bytes, or raises `InputError` that tells why it cannot.
    """

    name: str
    label: int
    read: Callable[[], bytes]


# Maps an index to the picture at it; several threads call it at a time.
Fetch = Callable[[int], Encoded]


@dataclasses.dataclass(frozen=True)
class EncodedSplit:
    """Encoded examples of one split, read by their index.

    Attributes:
      examples: number of them.
      fetch: finds one by its index.
      pixels: how they are decoded.
      random_resized_crop: in training, a part of a random place, of at least this
        share of a picture's area and of an aspect ratio between 3/4 and 4/3 takes the
        place of the central part; 0 to keep the same part as in evaluation.
      skip_corrupt: goes on without pictures that cannot be decoded, instead of
        stopping at the first.
      skipped: names of those met so far. Batches are made ahead of their use,
        so it may name some that were not used yet.

    Raises:
      InputError: if `random_resized_crop` is out of range.
    """

    examples: int
    fetch: Fetch
    pixels: Pixels
    random_resized_crop: float = 0.0
    skip_corrupt: bool = False
    skipped: set[str] = dataclasses.field(default_factory=set)

    # A batch is decoded by as many threads as there are cores. With two at a time, no core
    # waits for the last picture of a batch.
    parallel_batches = 2

    def __post_init__(self) -> None:
        if not 0 <= self.random_resized_crop <= 1:
            raise InputError(
                f"data.random_resized_crop must lie in [0, 1], got {self.random_resized_crop}"
            )

    @property
    def may_skip(self) -> bool:
        """Whether a batch for evaluation may have fewer images than indices."""
        return self.skip_corrupt

    def batch(
        self, indices: "tf.Tensor", draws: "tf.Tensor | None" = None
    ) -> "tuple[tf.Tensor, tf.Tensor]":
        """Reads and decodes examples; runs inside `tf.data`.

        In training the place of a corrupt picture is taken by a sound one of the
        same batch, in evaluation it stays out. So batches depend on nothing but
        their indices and draws.

        Args:
          indices: int64 `[batch]`.
          draws: float32 `[batch, *windows.DRAWS]`, of random parts for training; None
            for evaluation.

        Returns:
          Images uint8 `[batch, height, width, channels]`, labels int32 `[batch]`.
        """
        import tensorflow as tf

        inputs = [indices] if draws is None else [indices, draws]
        # Stateless, or tf.data would make one batch at a time where operations are deterministic.
        images, labels = tf.numpy_function(
            self.arrays, inputs, (tf.uint8, tf.int32), stateful=False
        )
        return tf.ensure_shape(images, (None, *self.pixels.shape)), tf.ensure_shape(labels, [None])

    def arrays(
        self, indices: np.ndarray, draws: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """What `batch` gives, as arrays.

        Raises:
          InputError: for a corrupt picture unless such are skipped; if a batch for
            training, or the whole split, has none that is sound.
        """
        # Pillow's decoders run outside of Python's lock.
        with futures.ThreadPoolExecutor() as pool:
            rows = itertools.repeat(None) if draws is None else draws
            pictures, decoded = zip(*pool.map(self._attempt, indices.tolist(), rows), strict=True)
        labels = np.array([picture.label for picture in pictures], np.int32)
        refused = {
            picture.name: reason
            for picture, reason in zip(pictures, decoded, strict=True)
            if isinstance(reason, InputError)
        }
        if not refused:
            return np.stack(decoded), labels
        self._note(refused)
        sound = np.array([isinstance(image, np.ndarray) for image in decoded])
        rows = np.flatnonzero(sound) if draws is None else _filled(sound, refused)
        images = np.empty((len(rows), *self.pixels.shape), np.uint8)
        for row, source in enumerate(rows):
            images[row] = decoded[source]
        return images, labels[rows]

    def _attempt(
        self, index: int, draws: np.ndarray | None
    ) -> tuple[Encoded, np.ndarray | InputError]:
        """A picture with its pixels, or with why there are none."""
        picture = self.fetch(index)
        try:
            decoded = decode(picture.read())
            window = None
            if draws is not None and self.random_resized_crop:
                window = random_window(*decoded.size, self.random_resized_crop, draws)
            return picture, self.pixels.image(decoded, window)
        except InputError as error:
            return picture, error

    def _note(self, refused: Mapping[str, InputError]) -> None:
        """Keeps the names of corrupt pictures; raises `InputError` if they end the run."""
        name, reason = next(iter(refused.items()))
        if not self.skip_corrupt:
            raise InputError(
                f"pictures must be sound, got {name}: {reason}; mend it, or hne-train with "
                "--config.data.skip_corrupt=True to skip and count such files"
            )
        self.skipped.update(refused)
        if len(self.skipped) >= self.examples:
            raise InputError(
                f"a split must have a sound picture, got {self.examples} corrupt ones, "
                f"the first: {name}: {reason}"
            )


def _filled(sound: np.ndarray, refused: Mapping[str, InputError]) -> np.ndarray:
    """Rows of a batch that keeps its size, with sound ones in the place of corrupt ones."""
    if not sound.any():
        raise InputError(f"a batch needs a sound picture, got only corrupt ones: {list(refused)}")
    rows = np.arange(len(sound))
    rows[~sound] = np.resize(np.flatnonzero(sound), np.count_nonzero(~sound))
    return rows
