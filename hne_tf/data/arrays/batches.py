"""Batches of a loaded data set as NumPy arrays, which resume exactly.

A training batch is a pure function of the seed and the step, as in `data.pipeline`. The
permutation of an epoch and the random numbers of the augmentation are NumPy's, so batches
differ from those of `tf.data`; what they are made of does not.
"""

import collections
import functools
import math
import os
from collections.abc import Callable, Iterator
from concurrent import futures

import numpy as np

from hne_tf.data.arrays import augmentation
from hne_tf.data.data_set import LoadedData, check_at_least
from hne_tf.errors import InputError

# Images uint8 [batch, height, width, channels], labels int32 [batch].
ArrayBatch = tuple[np.ndarray, np.ndarray]

# Batches made ahead of their use, enough for a call of several steps, and their most bytes.
_AHEAD = 128
_BYTES_AHEAD = 2**28


class ArrayDataSet(LoadedData):
    """A labelled image data set with its batches as arrays."""

    def train_batches(
        self, *, batch_size: int, start_step: int, total_steps: int, seed: int
    ) -> Iterator[ArrayBatch]:
        """Shuffled and augmented training batches, one per step.

        Every example comes exactly once per epoch, in an order that depends on
        the seed and the epoch; a batch may straddle two epochs. The batch of a
        step depends on `batch_size`, `seed` and the step only.

        Args:
          batch_size: images per batch, over all devices.
          start_step: step of the first batch, from 0.
          total_steps: step at which the batches end; not itself included.
          seed: of order and augmentation.

        Raises:
          InputError: if a number is out of range, or Keras's layers were to change images.
        """
        if self.augmentation.in_views:
            raise InputError(
                "data.rand_augment, mix and random_erasing must be off without TensorFlow, got "
                f"{self.augmentation.in_views}"
            )
        check_at_least("batch_size", batch_size, 1)
        check_at_least("start_step", start_step, 0)
        check_at_least("total_steps", total_steps, 0)
        order = Order(self.examples("train"), seed)

        def batch(step: int) -> ArrayBatch:
            return self._train_batch(order(step, batch_size), seed, step)

        ahead = _BYTES_AHEAD // (batch_size * math.prod(self.spec.shape))
        return _made_ahead(batch, range(start_step, total_steps), max(2, min(ahead, _AHEAD)))

    def _train_batch(self, indices: np.ndarray, seed: int, step: int) -> ArrayBatch:
        draws = augmentation.draw(self.augmentation, len(indices), seed, step)
        images, labels = self._split("train").arrays(indices, draws.windows)
        return augmentation.apply(self.augmentation, images, draws), labels

    def evaluation_batches(self, split: str, batch_size: int) -> Iterator[ArrayBatch]:
        """The examples of a split in order, each once, never augmented.

        The last batch may be smaller than `batch_size`, and so is one without its corrupt
        images.

        Raises:
          InputError: if there is no such split or `batch_size` is below 1.
        """
        check_at_least("batch_size", batch_size, 1)
        source = self._split(split)
        for start in range(0, source.examples, batch_size):
            stop = min(start + batch_size, source.examples)
            images, labels = source.arrays(np.arange(start, stop))
            if len(labels):
                yield images, labels


class Order:
    """The order in which epochs go through examples.

    Position `step * batch_size + i` of an endless stream of epochs is looked up in the
    permutation of its epoch: nothing has to be replayed to start in the middle.

    Args:
      examples: number of examples in an epoch.
      seed: of the order.
    """

    def __init__(self, examples: int, seed: int) -> None:
        self._examples = examples
        # Batches made at once straddle few epochs.
        self._permutation = functools.lru_cache(4)(
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(examples)
        )

    def __call__(self, step: int, batch_size: int) -> np.ndarray:
        """Indices `[batch_size]` of the examples in the batch of a step."""
        positions = step * batch_size + np.arange(batch_size)
        epochs = positions // self._examples
        indices = np.empty(batch_size, np.int64)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            indices[rows] = self._permutation(int(epoch))[positions[rows] % self._examples]
        return indices


def _made_ahead(
    batch: Callable[[int], ArrayBatch], steps: range, ahead: int
) -> Iterator[ArrayBatch]:
    """The batches of all steps in order, while threads make the next `ahead` of them."""
    with futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        pending: collections.deque[futures.Future[ArrayBatch]] = collections.deque()
        coming = iter(steps)
        try:
            while True:
                while len(pending) < ahead and (step := next(coming, None)) is not None:
                    pending.append(pool.submit(batch, step))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            for each in pending:
                each.cancel()
