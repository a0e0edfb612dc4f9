"""Latency of a SavedModel's signatures on this machine."""

import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hne_tf import hardware


def measure(
    folder: pathlib.Path,
    signatures: Sequence[str],
    batch_sizes: Sequence[int] = (1,),
    runs: int = 100,
) -> dict[str, Any]:
    """Times warm calls of each signature, the signatures taking turns.

    Args:
      folder: the SavedModel.
      signatures: names of signatures that take `images`.
      batch_sizes: images per call.
      runs: timed calls per signature and batch size, after 5 untimed ones.

    Returns:
      `hardware` and `measurements`: rows of `signature`, `batch_size`, `runs`,
      `p50_ms`, `p95_ms` and `p99_ms`.
    """
    loaded = tf.saved_model.load(str(folder)).signatures
    rows = []
    for batch_size in batch_sizes:
        times = _times_ms(loaded, signatures, batch_size, runs)
        for name in signatures:
            p50, p95, p99 = np.percentile(times[name], [50, 95, 99])
            rows.append(
                {
                    "signature": name,
                    "batch_size": batch_size,
                    "runs": runs,
                    "p50_ms": round(float(p50), 4),
                    "p95_ms": round(float(p95), 4),
                    "p99_ms": round(float(p99), 4),
                }
            )
    return {"hardware": hardware.describe(), "measurements": rows}


def _times_ms(
    loaded: dict[str, Any], signatures: Sequence[str], batch_size: int, runs: int, warm_up: int = 5
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in signatures}
    for run in range(-warm_up, runs):
        for name in signatures:
            spec = loaded[name].structured_input_signature[1]["images"]
            images = tf.zeros([batch_size, *spec.shape[1:]], spec.dtype)
            started = time.perf_counter()
            loaded[name](images=images)["probabilities"].numpy()
            if run >= 0:
                times[name].append(1000 * (time.perf_counter() - started))
    return times
