"""Trains a tree of networks: hne-train --config=configs/digits.py --workdir=runs/digits.

Any field of the config can be overridden: --config.training.epochs=3.
SIGTERM saves and stops; the same command goes on from there.
"""

import pathlib
import sys
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from hne_tf.bin import app
from hne_tf.errors import InputError
from hne_tf.training import arithmetic
from hne_tf.training.workdir import Workdir


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this binary."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file of the experiment, e.g. configs/digits.py.",
        flag_values=values,
        lock_config=True,
        sys_argv=argv,
    )
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_bool(
        "restart", False, "Move an older run in the folder aside first.", flag_values=values
    )
    flags.mark_flags_as_required(["config", "workdir"], values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Trains with the parsed flags."""
    app.reject_positional(positional)
    try:
        # A file that cannot be loaded is an error only when it is looked into.
        config = ml_collections.FrozenConfigDict(values.config)
    except OSError as error:
        raise InputError(f"--config must name a config file: {error}") from None
    with app.quiet_import():
        from hne_tf.training.loop import train

    train(
        config,
        Workdir(pathlib.Path(values.workdir)),
        restart=values.restart,
    )


def _onednn(values: flags.FlagValues) -> bool | None:
    """On for a new run; one that goes on keeps to what it began with."""
    return arithmetic.onednn_of(Workdir(pathlib.Path(values.workdir)), values.restart)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the binary; returns its exit code."""
    return app.run("hne-train", define_flags, main, argv, _onednn)


if __name__ == "__main__":
    sys.exit(run())
