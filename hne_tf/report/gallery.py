"""Test images with what every ensemble size answers to them."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from PIL import Image

from hne_tf.evaluation.evaluation import inference
from hne_tf.models.averaging import ensemble_log_probabilities
from hne_tf.training.trained import TrainedRun

# Images that are looked at for the gallery: enough, and quick on a CPU.
_CANDIDATES = 1000
_BATCH_SIZE = 250
# Larger pictures are made smaller, to keep the page light.
_LARGEST_SIDE_PIXELS = 96


def collect(run: TrainedRun, sizes: Sequence[int], count: int) -> dict[str, Any]:
    """Shows test images, half of them where the ensemble's size matters.

    Args:
      run: the trained run.
      sizes: ensemble sizes that answer.
      count: how many images at most, chosen as `chosen` does among the first 1,000.

    Returns:
      `candidates`: how many images were looked at; `telling`: how many of those shown
      are answered right by some sizes and wrong by others; `classes`: names; `images`:
      each with its `index` in the split, its `picture` as a data URI, its `label`, and
      the `answers`, classes, and `confidences` of each size.
    """
    images, labels = next(run.data_set.evaluation_batches("test", _CANDIDATES).as_numpy_iterator())
    probabilities = _probabilities(run, images, sizes)
    answers = probabilities.argmax(axis=-1)
    correct = answers == labels[:, None]
    shown = chosen(correct, count)
    return {
        "candidates": len(images),
        "telling": int(_telling(correct)[shown].sum()),
        "classes": list(run.model.images.class_names),
        "images": [
            {
                "index": int(index),
                "picture": data_uri(images[index]),
                "label": int(labels[index]),
                "answers": answers[index].tolist(),
                "confidences": [round(float(p), 4) for p in probabilities[index].max(axis=-1)],
            }
            for index in shown
        ],
    }


def chosen(correct: np.ndarray, count: int) -> np.ndarray:
    """Indices of images to show, increasing.

    Args:
      correct: bool `[images, sizes]`, whether each size is right.
      count: how many at most.

    Returns:
      The first images on which the sizes differ, up to half of `count`, and the first
      of the others.
    """
    telling = _telling(correct)
    first = np.flatnonzero(telling)[: count // 2]
    others = np.setdiff1d(np.arange(len(correct)), first)[: count - len(first)]
    return np.sort(np.concatenate([first, others]))


def data_uri(image: np.ndarray) -> str:
    """A picture for an `img` element, as PNG.

    Args:
      image: uint8 `[height, width, channels]`, of 1 or 3 channels.
    """
    picture = Image.fromarray(image.squeeze(axis=-1) if image.shape[-1] == 1 else image)
    picture.thumbnail((_LARGEST_SIDE_PIXELS, _LARGEST_SIDE_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _telling(correct: np.ndarray) -> np.ndarray:
    """Whether some sizes are right and others wrong, bool `[images]`."""
    return correct.any(axis=1) & ~correct.all(axis=1)


def _probabilities(run: TrainedRun, images: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Of each size, `[images, sizes, classes]`."""
    predict, average = inference(run.model), run.model.average
    scores = [
        ensemble_log_probabilities(predict(images[first : first + _BATCH_SIZE]), sizes, average)
        for first in range(0, len(images), _BATCH_SIZE)
    ]
    return np.exp(np.concatenate([keras.ops.convert_to_numpy(each) for each in scores]))
