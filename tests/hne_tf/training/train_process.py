"""`hne-train` in a process of its own, for tests that stop or kill it, or need several."""

import multiprocessing
import os
import pathlib
import sys

from hne_tf.bin import train

# Forked from a process in which libraries are loaded but nothing was computed: loading
# takes longer than a short run.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tensorflow", "keras", "sklearn.datasets"])


class TrainProcess:
    """A run of the command, with what it prints in two files.

    Args:
      arguments: of `hne-train`.
      folder: where the files are written.
      environment: variables that the process has besides.
    """

    def __init__(
        self, arguments: list[str], folder: pathlib.Path, environment: dict[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True)
        self._printed = folder / "stdout", folder / "stderr"
        self._process = _PROCESSES.Process(
            target=_run, args=(arguments, environment or {}, self._printed)
        )
        self._process.start()

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def ends(self) -> tuple[int, list[str], list[str]]:
        """Waits for the end: exit code, negative after a signal, and lines on both outputs."""
        self._process.join()
        output, errors = (path.read_text().splitlines() for path in self._printed)
        return self._process.exitcode, output, errors

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _run(
    arguments: list[str], environment: dict[str, str], printed: tuple[pathlib.Path, pathlib.Path]
) -> None:
    os.environ.update(environment)
    for number, path in enumerate(printed, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.exit(train.run(arguments))
