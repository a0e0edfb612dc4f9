"""The machine that computes: what it is, and which of its kernels TensorFlow takes.

Imports no TensorFlow: kernels are chosen before it is loaded.
"""

import os
import pathlib
import platform
from typing import Any

# TensorFlow reads it once, while it loads.
ONEDNN_VARIABLE = "TF_ENABLE_ONEDNN_OPTS"


def prefer_onednn(on: bool | None) -> None:
    """Has a TensorFlow that is yet to be loaded compute with oneDNN, or without it.

    On a CPU without the newest vector instructions TensorFlow leaves oneDNN off, and
    large batches take several times as long. Calls of one image are often faster
    without it.

    Args:
      on: the faster choice; None leaves it to TensorFlow. A choice that the user has
        made in the environment stays.
    """
    if on is not None:
        os.environ.setdefault(ONEDNN_VARIABLE, str(int(on)))


def has_onednn() -> bool:
    """Whether TensorFlow, which this loads, computes with oneDNN."""
    # No public function tells; what TensorFlow's own tests ask.
    from tensorflow.python.util import _pywrap_util_port

    return _pywrap_util_port.IsMklEnabled()


def describe() -> dict[str, Any]:
    """Processor, its cores, accelerators and operating system of this machine."""
    import tensorflow as tf

    return {
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "accelerators": [device.name for device in tf.config.list_physical_devices("GPU")],
        "system": platform.system(),
    }


def _processor_name() -> str:
    """The processor's name; Linux has it only in /proc."""
    information = pathlib.Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """How many cores this process may use."""
    # Only Linux can keep a process from some of them.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
