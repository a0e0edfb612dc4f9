"""Latency of an export: in process and behind hne-serve, by TensorFlow and by LiteRT.

    python benchmarks/serve_latency.py

Two tables, of the preset `small` with random weights and 16 leaves. In the first, one process
times one image through `ensemble_16` and `ensemble_1` of the export, the same network as Keras
exports it with its batch norms in place, and a folded single network (1, 1, 1, 1, 1).

The second has the export with its TFLite file: SavedModel and LiteRT, each in a process of its
own and behind an `hne-serve` of its own, with TensorFlow's own threads and with those that the
export was measured to be best with, and OpenVINO where it is installed. All contenders of a table
take turns in random order.
"""

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from absl import flags

from hne_tf import hardware
from hne_tf.bin import app

if typing.TYPE_CHECKING:
    from hne_tf.exported.model import ExportedModel
    from hne_tf.exported.profiling.latency import Setting, Timer
    from hne_tf.models.ensemble import TreeEnsemble

# By name of the contender and images per call.
_Timers = dict[tuple[str, int], "Timer"]

_TENSORFLOW, _LITERT = "SavedModel", "LiteRT"
_BEFORE, _CHOSEN = "threads as TensorFlow likes", "threads as measured"
_SERVED = "behind hne-serve"
_FLOOR = "gRPC alone: health check"


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this benchmark."""
    del argv
    flags.DEFINE_integer("rounds", 200, "Timed calls of each.", lower_bound=1, flag_values=values)
    flags.DEFINE_list("batch_sizes", ["1", "16", "64"], "Images per call.", flag_values=values)
    app.define_path(
        values,
        "version",
        None,
        "Published version with a TFLite file for the second table, alone.",
    )
    app.define_path(values, "results", None, "Also write the tables to this Markdown page.")


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints the tables."""
    app.reject_positional(positional)
    batch_sizes = app.integers("batch_sizes", values.batch_sizes)
    with app.quiet_import():
        from hne_tf.evaluation import results

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        parts = []
        version = pathlib.Path(values.version) if values.version else None
        if version is None:
            parts.append(_folded_table(folder, values.rounds))
            version = _export(folder, batch_sizes)
        parts.append(_runtimes_table(folder, version, batch_sizes, values.rounds))
    table = "\n\n".join(parts)
    print(table)
    if values.results:
        command = ["python", *app.command("benchmarks/serve_latency.py", values)]
        page = pathlib.Path(values.results)
        results.write_page(page, "Latency of an export", command, table)


def _folded_table(folder: pathlib.Path, rounds: int) -> str:
    from hne_tf.evaluation.tables import aligned
    from hne_tf.exported.profiling import latency

    timers = {name: latency.timer(call) for name, call in _calls(folder).items()}
    times = latency.take_turns(timers, rounds)
    rows = [
        [name, *(f"{each:.2f}" for each in np.percentile(values_ms, [50, 95]))]
        for name, values_ms in times.items()
    ]
    p50 = {name: np.median(values_ms) for name, values_ms in times.items()}
    return (
        aligned(["export", "p50 (ms)", "p95 (ms)"], rows, words={"export"})
        + f"\n\nensemble_16 is {p50['Keras, N = 16'] / p50['ensemble_16']:.2f} times as fast as "
        f"the Keras export; ensemble_1 takes {p50['ensemble_1'] / p50['folded single network']:.2f}"
        " times as long as a folded single network (medians)."
    )


def _tree(branching: Sequence[int]) -> "TreeEnsemble":
    """The preset `small` with random weights."""
    from hne_tf.image_spec import ImageSpec
    from hne_tf.models.architectures import ResNet
    from hne_tf.models.ensemble import TreeEnsemble
    from hne_tf.models.layers.training import TrainingLayers
    from hne_tf.tree import Tree

    cifar = ImageSpec((32, 32, 3), tuple("0123456789"), (125.0,) * 3, (63.0,) * 3)
    return TreeEnsemble(ResNet.presets["small"], Tree(tuple(branching)), cifar, TrainingLayers())


def _calls(folder: pathlib.Path) -> dict[str, Callable[[], np.ndarray]]:
    """Exports the networks and returns a call of each with one image."""
    import keras
    import tensorflow as tf

    from hne_tf.export import signatures
    from hne_tf.models import folding

    def deploy(trained: "TreeEnsemble", name: str):
        path = str(folder / name)
        signatures.save(signatures.signatures(folding.deployed(trained), trained.tree.sizes), path)
        return tf.saved_model.load(path).signatures

    trained, single = _tree((1, 2, 2, 2, 2)), _tree((1,) * 5)
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


def _export(folder: pathlib.Path, batch_sizes: Sequence[int]) -> pathlib.Path:
    """A version with a TFLite file, measured with one thread and with all cores."""
    from hne_tf.export.exporter import export

    return export(
        _tree((1, 2, 2, 2, 2)),
        folder / "small",
        batch_sizes=batch_sizes,
        litert=True,
        threads=sorted({1, hardware.cores()}),
        report=lambda line: None,
    )


def _runtimes_table(
    folder: pathlib.Path, version: pathlib.Path, batch_sizes: Sequence[int], rounds: int
) -> str:
    from hne_tf.errors import InputError
    from hne_tf.evaluation.tables import aligned
    from hne_tf.exported.model import load
    from hne_tf.exported.profiling import latency

    model = load(version)
    if model.manifest.litert is None:
        raise InputError(f"a version must have a measured TFLite file, got {str(version)!r}")
    with contextlib.ExitStack() as stack:
        timers = _in_process(stack, model, batch_sizes)
        timers |= _behind_servers(stack, folder, model, batch_sizes)
        timers |= _openvino(folder, model, batch_sizes)
        times = latency.take_turns(timers, rounds)
    p50 = {key: float(np.median(each)) for key, each in times.items()}
    rows = [
        [name, str(batch_size), f"{p50[name, batch_size]:.2f}", f"{np.percentile(each, 95):.2f}"]
        for (name, batch_size), each in sorted(times.items(), key=lambda item: item[0][1])
    ]
    header = ["runtime", "batch", "p50 (ms)", "p95 (ms)"]
    chosen = "; ".join(f"{name}: {_text(each)}" for name, each in _settings(model).items())
    return "\n\n".join(
        [
            aligned(header, rows, words={"runtime"}),
            "\n".join(_conclusions(p50, batch_sizes)),
            f"Settings: {chosen}.",
        ]
    )


def _conclusions(p50: Mapping[tuple[str, int], float], batch_sizes: Sequence[int]) -> Iterator[str]:
    """What the medians say, a line per batch size."""
    served = {name: f"{name}, {_SERVED}, {_CHOSEN}" for name in (_TENSORFLOW, _LITERT)}
    before = f"{_TENSORFLOW}, {_SERVED}, {_BEFORE}"
    for size in batch_sizes:
        ratio = p50[served[_LITERT], size] / p50[before, size]
        more = {
            name: p50[each, size] - p50[f"{name}, {_CHOSEN}", size] for name, each in served.items()
        }
        yield (
            f"Batch {size}: LiteRT behind hne-serve takes {ratio:.2f} of the SavedModel's time "
            f"there with its own threads; a call costs {more[_LITERT]:.2f} ms more than LiteRT in "
            f"process, and {more[_TENSORFLOW]:.2f} ms more than the SavedModel."
        )


def _settings(model: "ExportedModel") -> dict[str, "Setting"]:
    """Settings of the processes that compute without a server."""
    from hne_tf.exported.profiling.latency import Setting

    measured, litert = model.manifest.latency, model.manifest.litert
    cores, onednn = hardware.cores(), hardware.has_onednn()
    chosen = onednn if measured.onednn is None else measured.onednn
    return {
        f"{_TENSORFLOW}, {_BEFORE}": Setting(cores, onednn),
        f"{_TENSORFLOW}, {_CHOSEN}": Setting(cores, chosen, measured.side_by_side),
        f"{_LITERT}, one thread": Setting(1, False),
        f"{_LITERT}, {_CHOSEN}": Setting(litert.threads, False),
    }


def _text(setting: "Setting") -> str:
    from hne_tf.evaluation.tables import threads_text

    operation = ", one an operation" if setting.side_by_side else ""
    return f"{threads_text(setting.threads)}{operation}{', oneDNN' if setting.onednn else ''}"


def _in_process(
    stack: contextlib.ExitStack, model: "ExportedModel", batch_sizes: Sequence[int]
) -> _Timers:
    from hne_tf.exported.profiling import latency, runtimes

    file = runtimes.litert_model(model)
    processes = {
        name: stack.enter_context(
            latency.worker([file if name.startswith(_LITERT) else model], batch_sizes, setting)
        )
        for name, setting in _settings(model).items()
    }
    full = f"ensemble_{model.sizes[-1]}"
    return {
        (name, batch_size): timer
        for name, loaded in processes.items()
        for (_, signature, batch_size), timer in loaded().items()
        if signature == full
    }


def _behind_servers(
    stack: contextlib.ExitStack,
    folder: pathlib.Path,
    model: "ExportedModel",
    batch_sizes: Sequence[int],
) -> _Timers:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from hne_tf.client.budget_client import ServingClient
    from hne_tf.exported.profiling import latency

    full = f"ensemble_{model.sizes[-1]}"
    base = folder / "served" / model.manifest.model
    base.mkdir(parents=True)
    (base / "1").symlink_to(model.path.resolve())
    own = {
        hardware.ONEDNN_VARIABLE: str(int(hardware.has_onednn())),
        hardware.OPERATION_THREADS_VARIABLE: str(hardware.cores()),
    }
    timers: _Timers = {}
    for name, runtime, environment in (
        (f"{_TENSORFLOW}, {_SERVED}, {_BEFORE}", "tensorflow", own),
        (f"{_TENSORFLOW}, {_SERVED}, {_CHOSEN}", "tensorflow", {}),
        (f"{_LITERT}, {_SERVED}, {_CHOSEN}", "litert", {}),
    ):
        address = stack.enter_context(_server(base, runtime, environment))
        client = stack.enter_context(ServingClient(address, model.manifest.model))
        for batch_size in batch_sizes:
            images = {"images": np.zeros([batch_size, *model.image_shape], np.uint8)}
            timers[name, batch_size] = latency.timer(
                lambda client=client, images=images: client.run(full, images, ["probabilities"])
            )
    health = health_pb2_grpc.HealthStub(stack.enter_context(grpc.insecure_channel(address)))
    request = health_pb2.HealthCheckRequest()
    timers[_FLOOR, batch_sizes[0]] = latency.timer(lambda: health.Check(request))
    return timers


@contextlib.contextmanager
def _server(base: pathlib.Path, runtime: str, environment: Mapping[str, str]) -> Iterator[str]:
    """An hne-serve in a process of its own; yields its address."""
    chosen_by_itself = {hardware.ONEDNN_VARIABLE, hardware.OPERATION_THREADS_VARIABLE}
    inherited = {key: value for key, value in os.environ.items() if key not in chosen_by_itself}
    command = [sys.executable, "-m", "hne_tf.bin.serve", f"--model_base_path={base}"]
    with subprocess.Popen(
        [*command, "--port=0", f"--runtime={runtime}"],
        stdout=subprocess.PIPE,
        text=True,
        env={**inherited, **environment},
    ) as process:
        try:
            line = process.stdout.readline()
            yield re.search(r"address=(\S+)", line)[1]
        finally:
            process.terminate()
            # What it says at its end must have somewhere to go.
            process.communicate()


def _openvino(folder: pathlib.Path, model: "ExportedModel", batch_sizes: Sequence[int]) -> _Timers:
    """OpenVINO on the full ensemble alone: it reads one signature of a file."""
    try:
        import openvino
    except ImportError:
        return {}
    import tensorflow as tf

    from hne_tf.exported.profiling import latency

    full = f"ensemble_{model.sizes[-1]}"
    converter = tf.lite.TFLiteConverter.from_saved_model(str(model.path), signature_keys=[full])
    path = folder / "openvino.tflite"
    path.write_bytes(converter.convert())
    settings = {
        "INFERENCE_NUM_THREADS": model.manifest.litert.threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino.Core()
    timers: _Timers = {}
    for batch_size in batch_sizes:
        network = core.read_model(path)
        network.reshape([batch_size, *model.image_shape])
        compiled = core.compile_model(network, "CPU", settings)
        images = np.zeros([batch_size, *model.image_shape], np.uint8)
        timers[f"OpenVINO, {_CHOSEN}", batch_size] = latency.timer(
            lambda compiled=compiled, images=images: compiled(images)
        )
    return timers


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    return app.run("serve_latency", define_flags, main, argv, app.in_calls)


if __name__ == "__main__":
    sys.exit(run())
