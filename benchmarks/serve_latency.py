"""Latency of the folded export against the plain Keras export of the same network.

    python benchmarks/serve_latency.py

One process times one image through `ensemble_16` and `ensemble_1` of the export,
the same network as Keras exports it with its batch norms in place, and a folded
single network (1, 1, 1, 1, 1), all loaded from SavedModels, in turns of random
order.
"""

import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags

from hne_tf.bin import app


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this benchmark."""
    del argv
    flags.DEFINE_integer("rounds", 200, "Timed calls of each.", lower_bound=1, flag_values=values)
    app.define_path(values, "results", None, "Also write the table to this Markdown page.")


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints the table."""
    app.reject_positional(positional)
    with app.quiet_import():
        from hne_tf.evaluation import results
        from hne_tf.evaluation.tables import aligned
        from hne_tf.exported.profiling import latency

    with tempfile.TemporaryDirectory() as folder:
        calls = _calls(pathlib.Path(folder))
        timers = {name: latency.timer(call) for name, call in calls.items()}
        times = latency.take_turns(timers, values.rounds)
    rows = [
        [name, *(f"{each:.2f}" for each in np.percentile(values_ms, [50, 95]))]
        for name, values_ms in times.items()
    ]
    lines = [aligned(["export", "p50 (ms)", "p95 (ms)"], rows, words={"export"})]
    p50 = {name: np.median(values_ms) for name, values_ms in times.items()}
    lines.append(
        f"\nensemble_16 is {p50['Keras, N = 16'] / p50['ensemble_16']:.2f} times as fast as the "
        f"Keras export; ensemble_1 takes {p50['ensemble_1'] / p50['folded single network']:.2f} "
        "times as long as a folded single network (medians)."
    )
    table = "\n".join(lines)
    print(table)
    if values.results:
        command = ["python", *app.command("benchmarks/serve_latency.py", values)]
        page = pathlib.Path(values.results)
        results.write_page(page, "Latency of the folded export", command, table)


def _calls(folder: pathlib.Path) -> dict[str, Callable[[], np.ndarray]]:
    """Exports the networks and returns a call of each with one image."""
    import keras
    import tensorflow as tf

    from hne_tf.export import signatures
    from hne_tf.image_spec import ImageSpec
    from hne_tf.models import folding, weights
    from hne_tf.models.architectures import ResNet
    from hne_tf.models.ensemble import TreeEnsemble
    from hne_tf.models.layers.deploy import DeployLayers
    from hne_tf.models.layers.training import TrainingLayers
    from hne_tf.tree import Tree

    cifar = ImageSpec((32, 32, 3), tuple("0123456789"), (125.0,) * 3, (63.0,) * 3)

    def deploy(trained: TreeEnsemble, name: str):
        model = TreeEnsemble(ResNet.presets["small"], trained.tree, cifar, DeployLayers())
        weights.load(model, folding.fold(weights.read(trained)))
        sizes = model.tree.sizes
        path = str(folder / name)
        signatures.save(signatures.signatures(model, sizes), path)
        return tf.saved_model.load(path).signatures

    trained = TreeEnsemble(ResNet.presets["small"], Tree((1, 2, 2, 2, 2)), cifar, TrainingLayers())
    single = TreeEnsemble(ResNet.presets["small"], Tree((1,) * 5), cifar, TrainingLayers())
    average = keras.layers.GlobalAveragePooling1D()(trained.output)
    answer = keras.Model(trained.input, keras.layers.Softmax()(average))
    answer.export(str(folder / "keras"), verbose=False)
    plain = tf.saved_model.load(str(folder / "keras")).signatures["serving_default"]
    tree, alone = deploy(trained, "tree"), deploy(single, "single")
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)), tf.uint8)
    functions = {
        "Keras, N = 16": plain,
        "ensemble_16": tree["ensemble_16"],
        "ensemble_1": tree["ensemble_1"],
        "folded single network": alone["ensemble_1"],
    }

    def caller(function: Callable) -> Callable[[], np.ndarray]:
        return lambda: next(iter(function(images=images).values())).numpy()

    return {name: caller(function) for name, function in functions.items()}


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    return app.run("serve_latency", define_flags, main, argv, app.in_calls)


if __name__ == "__main__":
    sys.exit(run())
