"""Latency of a SavedModel's signatures on this machine."""

import os
import pathlib
import platform
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def measure(
    folder: pathlib.Path,
    signatures: Sequence[str],
    batch_sizes: Sequence[int] = (1,),
    runs: int = 50,
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
    return {"hardware": hardware(), "measurements": rows}


def hardware() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "accelerators": [device.name for device in tf.config.list_physical_devices("GPU")],
        "system": platform.system(),
    }


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


def _processor_name() -> str:
    """The processor's name; Linux has it only in /proc."""
    information = pathlib.Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
