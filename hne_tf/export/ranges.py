"""Images for the TFLite converter's own calibration, which measures ranges by signature."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from hne_tf.errors import InputError
from hne_tf.export.signatures import Signatures
from hne_tf.models.ensemble import TreeEnsemble

# The converter computes all signatures on each of them, with one thread.
MOST_IMAGES = 100

Sample = tuple[str, dict[str, np.ndarray]]


def representative(
    model: TreeEnsemble, endpoints: Signatures, batches: Iterable[Any]
) -> Callable[[], Iterator[Sample]]:
    """What a converter's `representative_dataset` is for a model with all its signatures.

    A step starts from what the steps before it give in floating point.

    Args:
      model: whose signatures they are.
      endpoints: those to be converted.
      batches: representative images, uint8 `[batch, height, width, channels]`, of which
        the first ones are used.

    Raises:
      InputError: without images.
    """
    images = _first(batches)

    def samples() -> Iterator[Sample]:
        for index in range(len(images)):
            image = images[index : index + 1]
            for name in endpoints:
                if not name.startswith("step_"):
                    yield name, {"images": image}
            yield from _walked(model, endpoints, image)

    return samples


def _first(batches: Iterable[Any]) -> np.ndarray:
    taken: list[np.ndarray] = []
    for batch in batches:
        taken.append(np.asarray(batch))
        if sum(map(len, taken)) >= MOST_IMAGES:
            break
    if not sum(map(len, taken)):
        raise InputError("quantisation needs representative images, got none")
    return np.concatenate(taken)[:MOST_IMAGES]


def _walked(model: TreeEnsemble, endpoints: Signatures, image: np.ndarray) -> Iterator[Sample]:
    """The inputs of every step for an image."""
    known: dict[str, tf.Tensor] = {}
    for step in model.tree.steps:
        name = f"step_{step.size}"
        inputs = {"images": image}
        if step.branch_block:
            inputs = {"cache": known[f"cache_{step.branch_block - 1}"].numpy()}
        if step.size > 1:
            inputs["running_sum"] = known["running_sum"].numpy()
        yield name, inputs
        known |= endpoints[name](*map(tf.constant, inputs.values()))
