"""Trains a tree of networks: hne-train --config=configs/digits.py --workdir=runs/digits.

Any field of the config can be overridden: --config.training.epochs=3.
SIGTERM saves and stops; the same command goes on from there.

Needs an extra: pip install 'hne_tf[train]'
"""

import pathlib
import sys
from collections.abc import Sequence

import ml_collections
from absl import flags

from hne_tf.bin import app, config_file
from hne_tf.training.machines import arithmetic
from hne_tf.training.workdir import Workdir


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this binary."""
    config_file.define(values, argv, "Config file of the experiment, e.g. configs/digits.py.")
    app.define_path(values, "workdir", None, "Folder of the run.")
    flags.DEFINE_bool(
        "restart", False, "Move an older run in the folder aside first.", flag_values=values
    )
    flags.mark_flags_as_required(["config", "workdir"], values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Trains with the parsed flags."""
    app.reject_positional(positional)
    config = ml_collections.FrozenConfigDict(values.config)
    with app.quiet_import():
        from hne_tf.training import backends
        from hne_tf.training.loop import train

        backends.current().prepare(config)
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
