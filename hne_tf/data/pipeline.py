"""Batches of a loaded data set, as `tf.data` pipelines that resume exactly.

Training batches are a pure function of the seed and the step, so a run that
starts again at step k sees the batches it would have seen uninterrupted.
"""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from hne_tf.data.data_set import ArraySplit, LoadedData, check_at_least
from hne_tf.data.pixels import Pixels
from hne_tf.data.random_layers.layers import BatchLayers
from hne_tf.errors import InputError

# Images uint8 [batch, height, width, channels], labels int32 [batch].
Batch = tuple[tf.Tensor, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one split whose images are at hand as pixels.

    Attributes:
      labels: int32 `[examples]`.
      images: maps indices `[batch]` to images uint8
        `[batch, height, width, channels]`; runs inside `tf.data`.
    """

    labels: tf.Tensor
    images: Callable[[tf.Tensor], tf.Tensor]

    # Nothing is decoded, so nothing is skipped; see `EncodedSplit` for these.
    skipped = frozenset()
    may_skip = False
    parallel_batches = tf.data.AUTOTUNE

    @classmethod
    def of(cls, split: ArraySplit) -> "Split":
        """The examples of arrays, which are kept in host memory."""
        # Pipelines run on the host; on an accelerator they would copy from it.
        with tf.device("CPU:0"):
            gather = functools.partial(_gather, tf.constant(split.images), split.pixels)
            return cls(tf.constant(split.labels, tf.int32), gather)

    @property
    def examples(self) -> int:
        """Number of examples."""
        return int(self.labels.shape[0])

    def batch(self, indices: tf.Tensor, draws: tf.Tensor | None = None) -> Batch:
        """The examples of `indices`; no part of them is chosen by `draws`."""
        del draws
        return self.images(indices), tf.gather(self.labels, indices)


class DataSet(LoadedData):
    """A labelled image data set with its batches as `tf.data` pipelines."""

    def train_batches(
        self,
        *,
        batch_size: int,
        start_step: int,
        total_steps: int,
        seed: int,
        shard: tuple[int, int] = (0, 1),
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
          shard: `(index, count)`, which of `count` equal parts of every batch to
            read; together, the parts are the whole batch. The place of a corrupt
            image is taken by one of the same part.

        Returns:
          `total_steps - start_step` pairs of images uint8
          `[batch_size / count, height, width, channels]` and labels int32
          `[batch_size / count]`, or float32 `[batch_size / count, classes]` where
          images are mixed.

        Raises:
          InputError: if a number is out of range or the batch does not divide.
        """
        check_at_least("batch_size", batch_size, 1)
        check_at_least("start_step", start_step, 0)
        check_at_least("total_steps", total_steps, 0)
        rows = shard_rows(batch_size, shard)

        if self.augmentation.in_views and shard[1] > 1:
            raise InputError(
                "data.rand_augment, mix and random_erasing work on whole batches, on one "
                f"machine, got {shard[1]} shards"
            )
        self._prepare(batch_size)

        def batch(step: tf.Tensor) -> Batch:
            return self._train_batch(step, batch_size, seed, rows)

        steps = tf.data.Dataset.range(start_step, total_steps)
        return _pipeline(steps, batch, self._split("train").parallel_batches)

    def fit_batches(self, batch_size: int, seed: int = 0) -> "FitBatches":
        """Training batches for Keras's `fit`: those of `train_batches`, epoch after epoch.

        Every epoch has another order and another augmentation.

        Raises:
          InputError: if `batch_size` is below 1 or above the number of examples.

        Example:
          >>> model.fit(data_set.fit_batches(64), epochs=10)
        """
        check_at_least("batch_size", batch_size, 1)
        check_at_least("training examples", self.examples("train"), batch_size)
        return FitBatches(self, batch_size, seed)

    def _prepare(self, batch_size: int) -> None:
        """Makes what batches need before a graph is traced, in which there are no variables.

        Raises:
          InputError: if the batch does not divide into views.
        """
        if batch_size % max(1, len(self.augmentation.views)):
            raise InputError(
                f"batch_size must divide into the {len(self.augmentation.views)} data.views, "
                f"got {batch_size}"
            )
        if self.augmentation.in_views:
            _ = self._batch_layers

    def _train_batch(self, step: tf.Tensor, batch_size: int, seed: int, rows: slice) -> Batch:
        """Some rows of the batch of a step."""
        split = self._split("train")
        indices = shuffled_indices(step, batch_size, split.examples, seed)[rows]
        # Drawn for the whole batch, so that a shard changes nothing.
        step_seed = tf.stack([seed, step])
        draws = self.augmentation.draw(batch_size, step_seed)
        draws = type(draws)(*(draw[rows] for draw in draws))
        images, labels = split.batch(indices, draws.windows)
        images = tf.ensure_shape(images, (rows.stop - rows.start, *self.spec.shape))
        images = self.augmentation.apply(images, draws)
        if not self.augmentation.in_views:
            return images, labels
        return self._batch_layers.apply(images, labels, step_seed)

    @functools.cached_property
    def _batch_layers(self) -> BatchLayers:
        return BatchLayers(self.augmentation.in_views, len(self.spec.class_names))

    def evaluation_batches(self, split: str, batch_size: int) -> tf.data.Dataset:
        """The examples of a split in order, each once, never augmented.

        Returns:
          Pairs of images uint8 `[batch, height, width, channels]` and labels
          int32 `[batch]`; the last batch may be smaller than `batch_size`, and
          so is one without its corrupt images.

        Raises:
          InputError: if there is no such split or `batch_size` is below 1.
        """
        check_at_least("batch_size", batch_size, 1)
        source = self._split(split)

        def batch(indices: tf.Tensor) -> Batch:
            images, labels = source.batch(indices)
            return tf.ensure_shape(images, (None, *self.spec.shape)), labels

        indices = tf.data.Dataset.range(source.examples).batch(batch_size)
        batches = _pipeline(indices, batch, source.parallel_batches)
        if not source.may_skip:
            # Its number of batches is known, which a filter would hide.
            return batches
        # A batch is empty if all of its images are corrupt.
        return batches.filter(lambda images, labels: tf.size(labels) > 0)


class FitBatches(keras.utils.PyDataset):
    """An epoch of training batches for `fit`, another one after each epoch.

    Args:
      data_set: where they come from.
      batch_size: images per batch.
      seed: of order and augmentation.
    """

    def __init__(self, data_set: DataSet, batch_size: int, seed: int) -> None:
        super().__init__()
        rows = slice(0, batch_size)
        data_set._prepare(batch_size)
        self._batches = data_set.examples("train") // batch_size
        self._epoch = 0
        self._batch = tf.function(
            lambda step: data_set._train_batch(step, batch_size, seed, rows),
            input_signature=[tf.TensorSpec([], tf.int64)],
        )

    def __len__(self) -> int:
        return self._batches

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self._batch(self._epoch * self._batches + index)
        return images.numpy(), labels.numpy()

    def on_epoch_end(self) -> None:
        self._epoch += 1


def _gather(images: tf.Tensor, pixels: Pixels, indices: tf.Tensor) -> tf.Tensor:
    """Images of some indices, resized unless they have their size."""
    gathered = tf.gather(images, indices)
    if images.shape[1:] == pixels.shape:
        return gathered
    # Stateless, or tf.data would make one batch at a time where operations are deterministic.
    resized = tf.numpy_function(pixels.images, [gathered], tf.uint8, stateful=False)
    return tf.ensure_shape(resized, (None, *pixels.shape))


def shard_rows(batch_size: int, shard: tuple[int, int]) -> slice:
    """The rows of a batch that belong to a shard `(index, count)`.

    Raises:
      InputError: unless `0 <= index < count` and the batch divides by `count`.
    """
    index, count = shard
    if not 0 <= index < count:
        raise InputError(f"shard must be (index, count) with 0 <= index < count, got {shard}")
    if batch_size % count:
        raise InputError(f"batch_size must divide by the {count} shards, got {batch_size}")
    rows = batch_size // count
    return slice(index * rows, (index + 1) * rows)


def _pipeline(
    keys: tf.data.Dataset, batch: Callable[[tf.Tensor], Batch], parallel_batches: int
) -> tf.data.Dataset:
    """Maps `keys` to batches in parallel, in order."""
    # AutoGraph would take a second to find that there is nothing to convert.
    batch = tf.autograph.experimental.do_not_convert(batch)
    data = keys.map(batch, num_parallel_calls=parallel_batches, deterministic=True)
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
