"""What a user sees while a run trains."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)


class Progress:
    """A bar on a terminal; a line now and then where the output is a file.

    Accuracies are shown by ensemble size, `1: 56.1%  8: 58.0%`.

    Args:
      total_steps: steps of the whole run.
      sizes: ensemble sizes whose accuracy is shown.
      lines: number of lines over the run where there is no terminal.
    """

    def __init__(self, total_steps: int, sizes: Sequence[int], lines: int = 100) -> None:
        self._console = Console()
        self._sizes = tuple(dict.fromkeys(sizes))
        self._total = total_steps
        self._line_every = max(1, total_steps // lines)
        self._next_line = 0
        self._bar = RichProgress(
            MofNCompleteColumn(),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=total_steps, figures="tracing the graph")

    @contextlib.contextmanager
    def started_at(self, step: int) -> Iterator[None]:
        """Shows the bar, from `step` on, while the block runs."""
        with self._bar:
            self._bar.update(self._task, completed=step)
            yield

    def show(self, step: int, record: Mapping[str, float]) -> None:
        """Shows a record of the steps up to `step`."""
        accuracies = [f"{size}: {record[f'accuracy_{size}']:.1%}" for size in self._sizes]
        text = f"loss {record['loss']:.3f}  {'  '.join(accuracies)}"
        text += f"  {record['images_per_s']:.0f} images/s"
        self._bar.update(self._task, completed=step, figures=text)
        if not self._console.is_terminal and (step >= self._next_line or step == self._total):
            print(f"step {step}/{self._total}  {text}", flush=True)
            self._next_line = step + self._line_every
        validated = [
            f"{size}: {record[f'validation_accuracy_{size}']:.1%}"
            for size in self._sizes
            if f"validation_accuracy_{size}" in record
        ]
        if validated:
            line = f"step {step}/{self._total}  validation accuracy  {'  '.join(validated)}"
            self._console.print(line, highlight=False)
