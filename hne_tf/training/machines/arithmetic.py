"""What of the machine decides the bits of a run, beside its settings.

Imports no TensorFlow: a run that goes on chooses its kernels before that is loaded.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from hne_tf import hardware
from hne_tf.errors import InputError
from hne_tf.files import read_json, write_json
from hne_tf.training.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """How sums are rounded.

    Attributes:
      onednn: whether TensorFlow computes with oneDNN.
      operation_threads: threads that an operation is divided between.
    """

    onednn: bool
    operation_threads: int

    @classmethod
    def current(cls) -> "Arithmetic":
        """That of this process, whose TensorFlow it loads."""
        import tensorflow as tf

        threads = tf.config.threading.get_intra_op_parallelism_threads()
        return cls(hardware.has_onednn(), threads or os.cpu_count() or 1)

    def __str__(self) -> str:
        return (
            f"oneDNN {'on' if self.onednn else 'off'}, "
            f"{self.operation_threads} threads an operation"
        )


def onednn_of(workdir: Workdir, restart: bool = False) -> bool | None:
    """Whether a run that begins or goes on in a folder is to compute with oneDNN.

    Returns:
      True for a new run; for others what they began with, which is TensorFlow's own
      choice, None, where they are older than the record of it.
    """
    if restart:
        return True
    if kept := _read(workdir):
        return kept.onednn
    return None if workdir.metrics_path.exists() else True


def keep(workdir: Workdir, report: Callable[[str], None]) -> None:
    """Records the arithmetic of this process in a run's folder.

    Args:
      workdir: the folder of the run.
      report: gets a line if the run goes on with another arithmetic than before.
    """
    before, now = _read(workdir), Arithmetic.current()
    if before not in (None, now):
        report(
            f"note: the run was computed with {before} and goes on with {now}; "
            "its last digits are not those of an uninterrupted run"
        )
    write_json(workdir.arithmetic_path, dataclasses.asdict(now))


def _read(workdir: Workdir) -> Arithmetic | None:
    """What a run was computed with; None for one that is new, or older than the record."""
    if not workdir.arithmetic_path.exists():
        return None
    fields: Any = read_json(workdir.arithmetic_path)
    try:
        return Arithmetic(bool(fields["onednn"]), int(fields["operation_threads"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{workdir.arithmetic_path} must tell onednn and operation_threads: {error!r}"
        ) from None
