"""Examples that are kept as encoded pictures and decoded when a batch needs them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from hne_tf.data.decoding import Crops, attempt
from hne_tf.errors import InputError

# Maps an index, int64, to an encoded picture, its label (int32) and its name.
Fetch = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]

# Number of examples and their reader, by split.
Readers = Mapping[str, tuple[int, Fetch]]

# Whether an image is sound, its label, its name.
_TYPES = (tf.bool, tf.int32, tf.string)


@dataclasses.dataclass(frozen=True)
class EncodedSplit:
    """Encoded examples of one split, read by their index.

    Attributes:
      examples: number of them.
      fetch: reads one; runs inside `tf.data`.
      crops: which part of the pictures is kept.
      skip_corrupt: goes on without pictures that cannot be decoded, instead of
        stopping at the first.
      skipped: names of those met so far. Batches are made ahead of their use,
        so it may name some that were not used yet.
    """

    examples: int
    fetch: Fetch
    crops: Crops
    skip_corrupt: bool = False
    skipped: set[str] = dataclasses.field(default_factory=set)

    def batch(
        self, indices: tf.Tensor, seeds: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Reads and decodes examples; runs inside `tf.data`.

        In training the place of a corrupt picture is taken by a sound one of the
        same batch, in evaluation it stays out. So batches depend on nothing but
        their indices and seeds. Where TensorFlow's op determinism is on, tf.data
        runs this for one batch at a time.

        Args:
          indices: int64 `[batch]`.
          seeds: int64 `[batch, 2]`, of random windows for training; None for
            evaluation.

        Returns:
          Images uint8 `[batch, image_size, image_size, 3]`, labels int32 `[batch]`.
        """
        training = seeds is not None
        image = tf.TensorSpec([self.crops.image_size, self.crops.image_size, 3], tf.uint8)

        def read(row: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
            encoded, label, name = self.fetch(row[0])
            if training:
                decoded = attempt(lambda: self.crops.trained_on(encoded, row[1]), image)
            else:
                decoded = attempt(lambda: self.crops.evaluated(encoded), image)
            return *decoded, label, name

        images, sound, labels, names = tf.map_fn(
            read,
            (indices, seeds) if training else (indices,),
            fn_output_signature=(image, *(tf.TensorSpec([], t) for t in _TYPES)),
        )

        def choose() -> tf.Tensor:
            kept = functools.partial(self.kept, training=training)
            return tf.ensure_shape(tf.numpy_function(kept, [names, sound], tf.int64), [None])

        every = tf.range(tf.size(sound, tf.int64))
        kept = tf.cond(tf.reduce_all(sound), lambda: every, choose)
        return tf.gather(images, kept), tf.gather(labels, kept)

    def kept(self, names: np.ndarray, sound: np.ndarray, training: bool) -> np.ndarray:
        """Which rows make up a batch that has corrupt pictures.

        Args:
          names: bytes `[batch]`.
          sound: bool `[batch]`.
          training: whether the batch keeps its size.

        Returns:
          Rows, int64 `[batch]`, or only the sound ones in evaluation.

        Raises:
          InputError: unless corrupt pictures are skipped, or if a batch for
            training has none that is sound.
        """
        corrupt = [name.decode(errors="replace") for name in names[~sound]]
        if not self.skip_corrupt:
            raise InputError(
                f"pictures must be sound JPEG, PNG or GIF files, got {corrupt[0]}; mend it, or "
                "hne-train with --config.data.skip_corrupt=True to skip and count such files"
            )
        self.skipped.update(corrupt)
        sound_rows = np.flatnonzero(sound)
        if not training:
            return sound_rows
        if not len(sound_rows):
            raise InputError(f"a batch needs a sound picture, got only corrupt ones: {corrupt}")
        rows = np.arange(len(sound))
        rows[~sound] = np.resize(sound_rows, len(corrupt))
        return rows
