"""Batches of a loaded data set, as `tf.data` pipelines that resume exactly.

Training batches are a pure function of the seed and the step, so a run that
starts again at step k sees the batches it would have seen uninterrupted.
"""

import dataclasses
from collections.abc import Callable, Mapping

import tensorflow as tf

from hne_tf.data import augmentation
from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec

SPLITS = ("train", "validation", "test")

# Images uint8 [batch, height, width, channels], labels int32 [batch].
Batch = tuple[tf.Tensor, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one split.

    Attributes:
      labels: int32 `[examples]`.
      images: maps indices `[batch]` to images uint8
        `[batch, height, width, channels]`; runs inside `tf.data`.
    """

    labels: tf.Tensor
    images: Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A labelled image data set with its batches.

    Attributes:
      name: as in the config that loaded it.
      spec: shape, classes and normalisation of the images.
      splits: the examples of `train`, `validation` and `test`.
      pad_pixels: training images are padded with this many zeros on each side
        and cropped back at a random position.
      flip: whether training images are mirrored left to right at random.
    """

    name: str
    spec: ImageSpec
    splits: Mapping[str, Split] = dataclasses.field(repr=False)
    pad_pixels: int = 0
    flip: bool = False

    def examples(self, split: str) -> int:
        """Number of examples in `split`.

        Raises:
          InputError: if there is no such split.
        """
        return int(self._split(split).labels.shape[0])

    def train_batches(
        self, *, batch_size: int, start_step: int, total_steps: int, seed: int
    ) -> tf.data.Dataset:
        """Shuffled and augmented training batches, one per step.

        Every example comes exactly once per epoch, in an order that depends on
        the seed and the epoch; a batch may straddle two epochs. The batch of a
        step depends on `batch_size`, `seed` and the step only.

        Args:
          batch_size: images per batch, over all replicas.
          start_step: step of the first batch, from 0.
          total_steps: step at which the data set ends; not itself included.
          seed: of order and augmentation.

        Returns:
          `total_steps - start_step` pairs of images uint8
          `[batch_size, height, width, channels]` and labels int32 `[batch_size]`.

        Raises:
          InputError: if a number is out of range.
        """
        check_at_least("batch_size", batch_size, 1)
        check_at_least("start_step", start_step, 0)
        check_at_least("total_steps", total_steps, 0)
        split = self._split("train")
        examples = self.examples("train")

        def batch(step: tf.Tensor) -> Batch:
            indices = shuffled_indices(step, batch_size, examples, seed)
            images = tf.ensure_shape(split.images(indices), (batch_size, *self.spec.shape))
            images = augmentation.augment(
                images, self.pad_pixels, self.flip, tf.stack([seed, step])
            )
            return images, tf.gather(split.labels, indices)

        steps = tf.data.Dataset.range(start_step, total_steps)
        return _pipeline(steps, batch)

    def evaluation_batches(self, split: str, batch_size: int) -> tf.data.Dataset:
        """The examples of a split in order, each once, never augmented.

        Returns:
          Pairs of images uint8 `[batch, height, width, channels]` and labels
          int32 `[batch]`; the last batch may be smaller than `batch_size`.

        Raises:
          InputError: if there is no such split or `batch_size` is below 1.
        """
        check_at_least("batch_size", batch_size, 1)
        source = self._split(split)

        def batch(indices: tf.Tensor) -> Batch:
            images = tf.ensure_shape(source.images(indices), (None, *self.spec.shape))
            return images, tf.gather(source.labels, indices)

        indices = tf.data.Dataset.range(self.examples(split)).batch(batch_size)
        return _pipeline(indices, batch)

    def _split(self, name: str) -> Split:
        if name not in self.splits:
            raise InputError(f"split must be one of {', '.join(SPLITS)}, got {name!r}")
        return self.splits[name]


def check_at_least(name: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise InputError(f"{name} must be at least {minimum}, got {value!r}")


def _pipeline(keys: tf.data.Dataset, batch: Callable[[tf.Tensor], Batch]) -> tf.data.Dataset:
    """Maps `keys` to batches in parallel, in order."""
    data = keys.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    options = tf.data.Options()
    # There are no files to shard by: each worker takes its part of the batches.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return data.prefetch(tf.data.AUTOTUNE).with_options(options)


def shuffled_indices(step: tf.Tensor, batch_size: int, examples: int, seed: int) -> tf.Tensor:
    """Indices of the examples in the batch of `step`.

    Position `step * batch_size + i` of an endless stream of epochs is looked up
    in the permutation of its epoch, which is computed pointwise: nothing has to
    be replayed to start in the middle.

    Args:
      step: int64 scalar.
      batch_size: indices to return.
      examples: number of examples in an epoch.
      seed: of the order.

    Returns:
      int64 `[batch_size]` in `[0, examples)`.
    """
    positions = step * batch_size + tf.range(batch_size, dtype=tf.int64)
    epochs = positions // examples
    seeds = tf.stack([tf.fill([batch_size], tf.constant(seed, tf.int64)), epochs, 0 * epochs], 1)
    # The raw op, because tf.random.experimental.index_shuffle pads the wrong
    # axis of a seed per index, which a batch that straddles epochs needs.
    return tf.raw_ops.RandomIndexShuffle(
        index=positions % examples,
        seed=seeds,
        max_index=tf.constant(examples - 1, tf.int64),
        rounds=4,
    )
