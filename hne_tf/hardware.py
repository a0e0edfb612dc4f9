"""The machine that computes: what it is, and how TensorFlow is loaded on it.

Imports no TensorFlow: kernels are chosen before it is loaded.
"""

import ctypes
import importlib
import os
import pathlib
import platform
import runpy
import sys
from typing import Any

from hne_tf.errors import InputError

# TensorFlow reads it once, while it loads.
ONEDNN_VARIABLE = "TF_ENABLE_ONEDNN_OPTS"
# TensorFlow reads it once, before it computes anything.
OPERATION_THREADS_VARIABLE = "TF_NUM_INTRAOP_THREADS"
# Parameters of glibc's mallopt, and what they are set to: bytes at the end of the heap above which
# they are given back, bytes by which it grows at least, and how many allocations have pages of
# their own.
_MALLOC_OPTIONS = {-1: 2**31 - 1, -2: 2**26, -4: 0}


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


def prefer_one_thread_an_operation() -> None:
    """Has TensorFlow, before it computes anything, give each operation one thread.

    Operations that do not wait for each other then run side by side, on all cores. A
    number that the user has set in the environment stays.
    """
    os.environ.setdefault(OPERATION_THREADS_VARIABLE, "1")


def keep_freed_memory() -> None:
    """Has the C library keep the memory that this process frees, for what it allocates next.

    A step of training or a prediction allocates what the one before has freed. glibc gives
    large pieces back to the system in between, which hands them out again page by page and
    clears each: at worst that takes as long as computing does. The process stays as large as
    it has been. Settings of malloc that the user has made in the environment stay, and other
    C libraries are left as they are.
    """
    chosen = "MALLOC_", "GLIBC_TUNABLES"
    if sys.platform != "linux" or any(name.startswith(chosen) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in _MALLOC_OPTIONS.items():
            mallopt(option, value)


def load_keras() -> None:
    """Loads Keras, and TensorFlow with it, for a process of our own.

    Keras imports scikit-learn and matplotlib where it finds them, for wrappers and
    galleries, and TensorFlow imports JAX, for converters. We use none of them: without
    them Keras is loaded in two thirds of the time.

    Raises:
      InputError: if the package that KERAS_BACKEND names is unknown or not installed.
    """
    if "keras" in sys.modules:
        return
    unused = {"sklearn", "matplotlib", "jax"} - {os.environ.get("KERAS_BACKEND")}
    hidden = [name for name in unused if name not in sys.modules]
    # As if they were not installed.
    sys.modules.update(dict.fromkeys(hidden))
    try:
        importlib.import_module("keras")
    except (ImportError, ValueError) as error:
        backend = os.environ.get("KERAS_BACKEND")
        if backend is None:
            raise
        raise InputError(
            f"KERAS_BACKEND must name a backend of Keras that is installed, got {backend}: {error}"
        ) from None
    finally:
        for name in hidden:
            del sys.modules[name]


def child(module: str, *arguments: str) -> list[str]:
    """The command of another process that loads Keras and runs one of our modules."""
    return [sys.executable, "-m", __name__, module, *arguments]


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


if __name__ == "__main__":
    keep_freed_memory()
    load_keras()
    sys.argv.pop(0)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
