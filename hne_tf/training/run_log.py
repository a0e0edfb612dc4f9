"""What a run tells while it trains."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf

from hne_tf.errors import extra
from hne_tf.training.progress import Progress
from hne_tf.training.schedule import Schedule
from hne_tf.training.workdir import Workdir

with extra("train"):
    import tensorboard  # noqa: F401 - tf.summary writes through it


class RunLog:
    """Records of a run: a line of metrics.jsonl, TensorBoard events and a progress bar.

    Args:
      workdir: the folder of the run.
      schedule: its steps.
      sizes: ensemble sizes whose accuracy is shown.
    """

    def __init__(self, workdir: Workdir, schedule: Schedule, sizes: Sequence[int]) -> None:
        self._workdir = workdir
        self._schedule = schedule
        self._progress = Progress(schedule.total, sizes)

    @contextlib.contextmanager
    def opened_at(self, step: int) -> Iterator[None]:
        """Takes records, from `step` on, while the block runs."""
        writer = tf.summary.create_file_writer(str(self._workdir.events))
        with self._progress.started_at(step), writer.as_default():
            yield

    def add(self, step: int, record: Mapping[str, float]) -> None:
        """Adds a record of the steps up to `step`."""
        epoch = step / self._schedule.steps_per_epoch
        self._workdir.append_metrics({"step": step, "epoch": epoch, **record})
        for name, value in record.items():
            tf.summary.scalar(name, value, step=step)
        self._progress.show(step, record)
