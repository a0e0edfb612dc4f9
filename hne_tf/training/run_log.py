"""What a run tells while it trains."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from hne_tf.training.progress import Progress
from hne_tf.training.schedule import Schedule
from hne_tf.training.workdir import Workdir

# Takes name, value and step of a figure.
Scalar = Callable[[str, float, int], None]


class RunLog:
    """Records of a run: a line of metrics.jsonl, TensorBoard events and a progress bar.

    Args:
      workdir: the folder of the run.
      schedule: its steps.
      sizes: ensemble sizes whose accuracy is shown.
      events: opens the writer of TensorBoard's events in a folder.
    """

    def __init__(
        self,
        workdir: Workdir,
        schedule: Schedule,
        sizes: Sequence[int],
        events: Callable[[pathlib.Path], contextlib.AbstractContextManager[Scalar]],
    ) -> None:
        self._workdir = workdir
        self._schedule = schedule
        self._progress = Progress(schedule.total, sizes)
        self._events = events
        self._scalar: Scalar | None = None

    @contextlib.contextmanager
    def opened_at(self, step: int) -> Iterator[None]:
        """Takes records, from `step` on, while the block runs."""
        with (
            self._progress.started_at(step),
            self._events(self._workdir.events) as self._scalar,
        ):
            yield

    def add(self, step: int, record: Mapping[str, float]) -> None:
        """Adds a record of the steps up to `step`."""
        epoch = step / self._schedule.steps_per_epoch
        self._workdir.append_metrics({"step": step, "epoch": epoch, **record})
        for name, value in record.items():
            self._scalar(name, value, step)
        self._progress.show(step, record)
