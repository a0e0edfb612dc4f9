"""Trains a tree of networks: hne-train --config=configs/digits.py --workdir=runs/digits.

Any field of the config can be overridden: --config.training.epochs=3.
SIGTERM saves and stops; the same command goes on from there. KERAS_BACKEND=jax trains on
JAX, without TensorFlow.

hne-train --config=configs/cifar10_small.py --write_data=cifar10.npz writes the data set of a
config to a file, which --config.data.name=npz --config.data.data_dir=cifar10.npz reads where
TensorFlow Datasets is not installed.

hne-train --config=my_config.py --cost prints what each ensemble size and each block of the
config's network costs.

Needs an extra: pip install 'hne_tf[train]'
"""

import pathlib
import sys
from collections.abc import Sequence

import ml_collections
from absl import flags

from hne_tf.bin import app, config_file
from hne_tf.errors import InputError
from hne_tf.training.machines import arithmetic
from hne_tf.training.workdir import Workdir


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this binary."""
    config_file.define(values, argv, "Config file of the experiment, e.g. configs/digits.py.")
    app.define_path(values, "workdir", None, "Folder of the run.")
    flags.DEFINE_bool(
        "restart", False, "Move an older run in the folder aside first.", flag_values=values
    )
    app.define_path(
        values, "write_data", None, "Write the config's data set to this .npz file; train nothing."
    )
    flags.DEFINE_bool(
        "cost", None, "Print what the config's network costs; train nothing.", flag_values=values
    )
    flags.mark_flags_as_required(["config"], values)
    flags.mark_flags_as_mutual_exclusive(
        ["workdir", "write_data", "cost"], required=True, flag_values=values
    )


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Trains with the parsed flags."""
    app.reject_positional(positional)
    config = ml_collections.FrozenConfigDict(values.config)
    if values.write_data:
        _write_data(config.data, pathlib.Path(values.write_data))
        return
    if values.cost:
        _print_cost(config)
        return
    with app.quiet_import():
        from hne_tf.training import backends
        from hne_tf.training.loop import train

        backends.current().prepare(config)
    train(
        config,
        Workdir(pathlib.Path(values.workdir)),
        restart=values.restart,
    )


def _print_cost(config: ml_collections.FrozenConfigDict) -> None:
    """Prints a row for each ensemble size and each block of an untrained model."""
    with app.quiet_import():
        from hne_tf.data import load
        from hne_tf.evaluation import cost, tables
        from hne_tf.models.layers.deploy import DeployLayers
        from hne_tf.training import build

        model = build.ensemble(config, DeployLayers(), load(config.data).spec)
    print(tables.costs(cost.per_size(model, range(1, model.tree.leaves + 1))))
    print()
    print(tables.costs_of_blocks(cost.per_node(model)))


def _write_data(config: ml_collections.ConfigDict, path: pathlib.Path) -> None:
    """Writes a data set to a new `.npz` file.

    Raises:
      InputError: for encoded pictures, another suffix or a file that is there.
    """
    if path.suffix != ".npz" or path.exists():
        raise InputError(f"--write_data must be a new .npz file, got {path}")
    with app.quiet_import():
        from hne_tf.data import sets
        from hne_tf.data.sets import array_file
        from hne_tf.data.source import ArraySource

        # Whose module loads TensorFlow.
        load = sets.find(config.name)
    source = load(config)
    if not isinstance(source, ArraySource):
        raise InputError(
            f"--write_data is for images of one size and not for {config.name}, whose pictures are "
            "encoded"
        )
    array_file.save(source, path)
    counts = ", ".join(f"{len(labels)} of {name}" for name, (_, labels) in source.arrays.items())
    print(f"wrote {path}: images {counts}")


def _onednn(values: flags.FlagValues) -> bool | None:
    """On for a new run; one that goes on keeps to what it began with."""
    if values.workdir is None:
        return None
    return arithmetic.onednn_of(Workdir(pathlib.Path(values.workdir)), values.restart)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the binary; returns its exit code."""
    return app.run("hne-train", define_flags, main, argv, _onednn)


if __name__ == "__main__":
    sys.exit(run())
