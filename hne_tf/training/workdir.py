"""A run's folder: config.json, arithmetic.json, checkpoints, metrics.jsonl, evaluation.json.

A compressed run has weights.npz and compression.json in place of checkpoints.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import ml_collections

from hne_tf import files
from hne_tf.data.fingerprint import DataRecord
from hne_tf.errors import InputError
from hne_tf.files import read_json, write_json, write_text
from hne_tf.training.config import differences, digest, from_json

_LOCK = ".lock"
# What is in the folder of a run that has not begun.
_EMPTY = {_LOCK, "checkpoints"}


@dataclasses.dataclass(frozen=True)
class Workdir:
    """Names of what a run keeps.

    Attributes:
      path: the folder.
    """

    path: pathlib.Path

    @property
    def config_path(self) -> pathlib.Path:
        return self.path / "config.json"

    @property
    def data_path(self) -> pathlib.Path:
        return self.path / "data.json"

    @property
    def arithmetic_path(self) -> pathlib.Path:
        return self.path / "arithmetic.json"

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    @property
    def has_checkpoint(self) -> bool:
        """Whether a checkpoint was ever complete: TensorFlow's index, or a file of arrays."""
        return any(any(self.checkpoints.glob(name)) for name in ("*.index", "*.npz"))

    @property
    def weights_path(self) -> pathlib.Path:
        return self.path / "weights.npz"

    @property
    def compression_path(self) -> pathlib.Path:
        return self.path / "compression.json"

    @property
    def metrics_path(self) -> pathlib.Path:
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> pathlib.Path:
        return self.path / "events"

    def evaluation_path(self, split: str, average: str | None = None) -> pathlib.Path:
        """`evaluation.json` for the test split, `evaluation_<split>.json` for others.

        With the name of an average at the end where it is not the run's own.
        """
        parts = ("evaluation", "" if split == "test" else split, average or "")
        return self.path / f"{'_'.join(filter(None, parts))}.json"

    def read_config(self) -> ml_collections.FrozenConfigDict:
        """The settings the run was made with.

        Raises:
          InputError: if this is not the folder of a run.
        """
        if not self.config_path.exists():
            raise InputError(
                f"--workdir must be the folder of a training run, got {self.path} "
                "without config.json"
            )
        return from_json(read_json(self.config_path))

    def digest(self) -> str:
        """What the settings and data of the run are known by, see `config.digest`.

        Raises:
          InputError: if this is not the folder of a run.
        """
        kept = self.read_data()
        return digest(self.read_config(), kept.fingerprint if kept else None)

    def claim(self, config: ml_collections.ConfigDict, restart: bool) -> None:
        """Makes the folder this run's: a new one, or one of the same settings.

        Args:
          config: settings of the run.
          restart: moves an older run aside (to `<name>.1`, `<name>.2`, …) first.

        Raises:
          InputError: if the folder belongs to a run of other settings, with the
            difference, or holds something else.
        """
        if restart and self.path.exists():
            with self.in_use():
                self.path.rename(next(_free_names(self.path)))
        if self.compression_path.exists():
            raise InputError(
                f"{self.path} holds a compressed run, which is not trained further; "
                "use another --workdir, or --restart to move it aside"
            )
        if self.config_path.exists():
            changes = differences(self.read_config(), config)
            if changes:
                lines = "; ".join(f"{k}: {old!r} there, {new!r} here" for k, (old, new) in changes)
                raise InputError(
                    f"{self.path} was made with other settings ({lines}); "
                    "use another --workdir, or --restart to move the old run aside"
                )
            # Data may have moved since, or been found to be corrupt in places.
            write_json(self.config_path, config.to_dict())
            return
        # A kill at the very beginning leaves a folder of checkpoints without settings.
        if self.path.is_file() or (
            self.path.exists() and {file.name for file in self.path.iterdir()} - _EMPTY
        ):
            raise InputError(
                f"--workdir must be a new folder or the folder of a run, got {self.path}"
            )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_json(self.config_path, config.to_dict())

    def read_data(self) -> DataRecord | None:
        """What the run remembers of its data; None if it is older than the record.

        Raises:
          InputError: if the record is damaged.
        """
        if not self.data_path.exists():
            return None
        return DataRecord.from_json(read_json(self.data_path), str(self.data_path))

    def keep_data(self, data: DataRecord) -> None:
        """Records the data of a new run; a run that goes on must have the same.

        Raises:
          InputError: if the run was made with other classes or pictures.
        """
        before = self.read_data()
        if before is not None:
            before.check_classes(data)
            if difference := before.difference(data):
                raise InputError(
                    f"{self.path} was made with other data ({difference}); use another --workdir, "
                    "or --restart to move the old run aside"
                )
        write_json(self.data_path, dataclasses.asdict(data))

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps other trainings out of the folder while the block runs.

        A training that was killed no longer counts.

        Raises:
          InputError: if another training is in the folder.
        """
        with files.locked(self.path / _LOCK) as lock:
            if lock is None:
                raise InputError(
                    f"--workdir must be in use by one training at a time, got {self.path}, where "
                    "another one is running"
                )
            yield

    def drop_metrics_after(self, step: int) -> None:
        """Forgets records of steps that a resumed run will take again."""
        if not self.metrics_path.exists():
            return
        kept = [
            line
            for line in self.metrics_path.read_text().splitlines()
            if (record := _parse(line)) is not None and record["step"] <= step
        ]
        write_text(self.metrics_path, "".join(f"{line}\n" for line in kept))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl; a record names its `step`."""
        with self.metrics_path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def _free_names(path: pathlib.Path) -> Iterator[pathlib.Path]:
    number = 1
    while True:
        candidate = path.with_name(f"{path.name}.{number}")
        if not candidate.exists():
            yield candidate
        number += 1


def _parse(line: str) -> dict[str, Any] | None:
    """A record, or None for the torn last line of a killed run."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
