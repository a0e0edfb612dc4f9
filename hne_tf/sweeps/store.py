"""A sweep's root folder: runs by the digest of their settings. Imports no TensorFlow."""

import contextlib
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from hne_tf.errors import InputError
from hne_tf.files import locked, read_json
from hne_tf.sweeps.plan import Run
from hne_tf.training.workdir import Workdir

# Digits of the digest that name a folder; the settings inside are compared in full.
_NAME_DIGITS = 16
# Runs, and runs that `hne-train --restart` moved aside.
_RUN_NAME = re.compile(rf"[0-9a-f]{{{_NAME_DIGITS}}}(\.\d+)?")
_LOGS = "logs"

# An evaluation, see `evaluation.evaluate`, by split.
Evaluations = dict[str, dict[str, Any]]


class Store:
    """The folder that keeps the runs of one sweep or several.

    Args:
      root: the folder; made when it is claimed.

    Raises:
      InputError: if it holds something else.
    """

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        # Of folders that were looked into.
        self._digests: dict[pathlib.Path, str] = {}
        if root.exists() and not root.is_dir():
            raise InputError(f"--root must be a folder, got the file {root}")
        names = [path.name for path in root.iterdir()] if root.exists() else []
        # Hidden files are what tools leave behind.
        strange = [
            name
            for name in sorted(names)
            if not (name.startswith(".") or name == _LOGS or _RUN_NAME.fullmatch(name))
        ]
        if strange:
            raise InputError(
                f"--root must be a new folder or one that only sweeps have filled, got {root} "
                f"with {strange[0]!r}"
            )

    @contextlib.contextmanager
    def claimed(self, report: Callable[[str], None], patience_s: float = 60.0) -> Iterator[int]:
        """Keeps other sweeps off the folder while the block runs.

        Gives the descriptor of the lock. Processes that inherit it hold the
        lock with this one: runs that outlive a killed sweep for a moment keep
        the next sweep waiting until their folders are free.

        Raises:
          InputError: if another sweep does not end within `patience_s`.
        """
        (self.root / _LOGS).mkdir(parents=True, exist_ok=True)
        path = self.root / ".lock"
        with locked(path) as lock:
            if lock is not None:
                yield lock
                return
        report(f"waiting for another sweep in {self.root} to stop")
        with locked(path, patience_s) as lock:
            if lock is None:
                raise InputError(
                    f"--root must be in use by one sweep at a time, got {self.root}, where "
                    "another one is running"
                )
            yield lock

    def workdir(self, run: Run) -> Workdir:
        """Where the run is, or will be.

        Folders are known by the settings inside: settings that are newer than a
        folder have changed the digest, and the name that it would have today,
        but not the run.
        """
        named = Workdir(self.root / run.digest[:_NAME_DIGITS])
        if named.config_path.exists():
            return named
        return self._by_digest().get(run.digest, named)

    def log_path(self, run: Run) -> pathlib.Path:
        """Where everything that the run prints is added."""
        return self.root / _LOGS / f"{self.workdir(run).path.name}.log"

    def evaluations(self, run: Run, splits: tuple[str, ...]) -> Evaluations | None:
        """The run's evaluations, or None unless all of them are of its last step."""
        workdir = self.workdir(run)
        found = {}
        for split in splits:
            try:
                evaluation = read_json(workdir.evaluation_path(split))
                if evaluation["step"] < evaluation["total_steps"]:
                    return None
            # One that is damaged is made again.
            except (InputError, KeyError, TypeError):
                return None
            found[split] = evaluation
        return found

    def discard_unbegun(self, run: Run) -> None:
        """Removes what a run leaves that is killed before its first checkpoint is written.

        Such a folder holds nothing to go on from, and training takes it for a
        damaged or a strange one.
        """
        workdir = self.workdir(run)
        begun = workdir.metrics_path.exists() or workdir.has_checkpoint
        if workdir.path.exists() and not begun:
            shutil.rmtree(workdir.path)

    def _by_digest(self) -> dict[str, Workdir]:
        """Runs by the digest that their settings have today."""
        found = {}
        for path in sorted(self.root.glob("*/config.json")):
            folder = path.parent
            if "." in folder.name:
                continue  # Moved aside.
            if folder not in self._digests:
                self._digests[folder] = Workdir(folder).digest()
            found[self._digests[folder]] = Workdir(folder)
        return found
