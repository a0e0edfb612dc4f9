"""Weights that a run starts from, of another run of the same tree."""

import pathlib

from hne_tf.errors import InputError
from hne_tf.models import weights
from hne_tf.models.ensemble import Ensemble
from hne_tf.training import trained
from hne_tf.training.workdir import Workdir


def check(path: str) -> None:
    """Raises `InputError` unless there is a run at `path`."""
    if not Workdir(pathlib.Path(path)).config_path.exists():
        raise InputError(f"training.start_from must be the workdir of a run, got {path!r}")


def start(model: Ensemble, path: str) -> None:
    """Sets the newest weights of the run at `path`.

    Raises:
      InputError: if the run is of another tree or network, or has no sound weights.
    """
    values = weights.read(trained.restore(Workdir(pathlib.Path(path)), report=_silent).model)
    try:
        weights.load(model, values)
    except InputError as error:
        raise InputError(
            f"training.start_from must be a run of the same tree and network: {error}"
        ) from None


def _silent(line: str) -> None:
    del line
