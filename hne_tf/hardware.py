"""What a figure was measured on."""

import os
import pathlib
import platform
from typing import Any

import tensorflow as tf


def describe() -> dict[str, Any]:
    """Processor, its cores, accelerators and operating system of this machine."""
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
