"""Answers inside the deadline for a client that knows nothing of budgets, at twice the knee.

    python benchmarks/anytime_deadline.py

The client is a raw gRPC stub with `timeout=`. It asks `hne-serve`, and a gateway in
front of it (and of `tensorflow_model_server`, where that is on the PATH), for the full
ensemble and for `anytime`. Requests come open-loop, at random times of twice the rate
that the full ensemble was measured to keep up with just before. The gateway's cost is
the difference of medians of calls that take turns, beside that of a bare gRPC proxy
in Python that looks at nothing.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence

import grpc
import numpy as np
from absl import flags

from hne_tf.bin import app
from hne_tf.errors import InputError
from hne_tf.evaluation.tables import aligned

_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_START_S = 120.0
# Between the knees before and after a phase that counts.
_STEADY = 1.4
_OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
_BARE = """
import asyncio, sys, grpc
class Proxy(grpc.GenericRpcHandler):
    def __init__(self, stub):
        async def call(message, context):
            return await stub(message, timeout=context.time_remaining())
        self.handler = grpc.unary_unary_rpc_method_handler(call)
    def service(self, details):
        return self.handler
async def main(method, target):
    server = grpc.aio.server()
    channel = grpc.aio.insecure_channel(target)
    server.add_generic_rpc_handlers((Proxy(channel.unary_unary(method)),))
    print("address=127.0.0.1:%d" % server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()
asyncio.run(main(*sys.argv[1:]))
"""


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this benchmark."""
    del argv
    count = {"lower_bound": 1, "flag_values": values}
    flags.DEFINE_integer("batch_size", 16, "Images of a request.", **count)
    flags.DEFINE_float(
        "deadline", 6.0, "Of each request, in medians of the full ensemble.", **count
    )
    flags.DEFINE_float("load", 2.0, "Times the knee.", lower_bound=0.1, flag_values=values)
    flags.DEFINE_float("seconds", 5.0, "Of each phase.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("rounds", 8, "Phases of each; they take turns.", **count)
    flags.DEFINE_integer("calls", 300, "Timed calls of each for the gateway's cost.", **count)
    app.define_path(values, "results", None, "Also write the tables to this Markdown page.")


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints the tables."""
    app.reject_positional(positional)
    with contextlib.ExitStack() as stack, app.quiet_import():
        from hne_tf.evaluation import results

        base = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / "cifar"
        _publish(base / "1")
        servers = stack.enter_context(_servers(base))
        images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
        doors = {name: _Door(stack, name, address) for name, address in servers.items()}
        full = _message(np.repeat(images, values.batch_size, 0), "ensemble_16")
        anytime = _message(np.repeat(images, values.batch_size, 0), "anytime")
        text = _deadlines(doors, full, anytime, values)
        text += "\n\n" + _costs(doors, _message(images, "ensemble_1"), values.calls)
    print(text)
    if values.results:
        command = ["python", *app.command("benchmarks/anytime_deadline.py", values)]
        page = pathlib.Path(values.results)
        results.write_page(page, "A deadline for any client", command, text)


@dataclasses.dataclass
class _Tally:
    """What became of the requests of one kind."""

    sent: int = 0
    latencies_ms: list[float] = dataclasses.field(default_factory=list)
    sizes: list[int] = dataclasses.field(default_factory=list)
    codes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: "_Tally") -> None:
        """Takes in what another phase has found."""
        self.sent += other.sent
        self.latencies_ms += other.latencies_ms
        self.sizes += other.sizes
        self.codes += other.codes


class _Door:
    """A raw stub for one address."""

    def __init__(self, stack: contextlib.ExitStack, name: str, address: str) -> None:
        channel = stack.enter_context(grpc.insecure_channel(address, _OPTIONS))
        self.name = name
        self.call = channel.unary_unary(_PREDICT)

    def timed(self, message: bytes) -> float:
        """Milliseconds of a call."""
        started = time.perf_counter()
        self.call(message, timeout=60)
        return 1000 * (time.perf_counter() - started)

    def load(
        self, message: bytes, rate: float, seconds: float, timeout_s: float, seed: int
    ) -> _Tally:
        """Sends requests at random times and waits for what becomes of them."""
        tally = _Tally()
        random = np.random.default_rng(seed)
        due = np.cumsum(random.exponential(1 / rate, max(1, int(rate * seconds))))
        lock, calls = threading.Lock(), []
        started = time.perf_counter()

        def ended(call: grpc.Future, sent: float) -> None:
            with lock:
                code = call.code()
                tally.codes[code.name] += 1
                if code is grpc.StatusCode.OK:
                    tally.latencies_ms.append(1000 * (time.perf_counter() - sent))
                    tally.sizes.append(_size(call.result()))

        for at in due:
            time.sleep(max(0.0, started + at - time.perf_counter()))
            sent = time.perf_counter()
            call = self.call.future(message, timeout=timeout_s)
            call.add_done_callback(lambda done, sent=sent: ended(done, sent))
            calls.append(call)
        tally.sent = len(due)
        concurrent.futures.wait([_Done(call) for call in calls], timeout=60)
        return tally


class _Done(concurrent.futures.Future):
    """A gRPC call as a future that can be waited for with others."""

    def __init__(self, call: grpc.Future) -> None:
        super().__init__()
        call.add_done_callback(lambda done: self.set_result(done))


def _deadlines(
    doors: dict[str, _Door], full: bytes, anytime: bytes, values: flags.FlagValues
) -> str:
    asked = {name: door for name, door in doors.items() if name != "bare proxy"}
    kinds = {"ensemble_16": full, "anytime": anytime}
    tallies = {(name, kind): _Tally() for name in asked for kind in kinds}
    alone_ms = []
    for door in asked.values():
        # The first answers are for learning what answers take.
        for message in (anytime, full) * 8:
            alone_ms.append(door.timed(message))
    timeout_s = values.deadline * float(np.median(alone_ms[1::2])) / 1000
    knees = [_throughput(doors["hne-serve"], full)]
    unsteady = 0
    for _, (name, kind) in itertools.product(range(values.rounds), tallies):
        phase = asked[name].load(
            kinds[kind], values.load * knees[-1], values.seconds, timeout_s, len(knees)
        )
        knees.append(_throughput(doors["hne-serve"], full))
        # On a machine that others use, too, twice the knee before may be more than that now.
        if max(knees[-2:]) > _STEADY * min(knees[-2:]):
            unsteady += 1
        else:
            tallies[name, kind].add(phase)
    lines = [
        f"{values.batch_size} images a request, a deadline of {1000 * timeout_s:.0f} ms, "
        f"{values.deadline:g} times what the full ensemble takes alone, {values.load:g} times "
        f"the knee: {np.mean(knees):.1f} requests per second ({min(knees):.1f} to "
        f"{max(knees):.1f}), measured before and after each phase of {values.seconds:g} s. Left "
        f"out are {unsteady} of {len(knees) - 1} phases in which it changed by more than "
        f"{_STEADY - 1:.0%}.",
        "",
        _table(tallies),
    ]
    return "\n".join(lines)


def _table(tallies: dict[tuple[str, str], _Tally]) -> str:
    rows = []
    for (name, kind), tally in tallies.items():
        p50, p99 = np.percentile(tally.latencies_ms or [np.nan], [50, 99])
        others = {code: count for code, count in tally.codes.items() if code != "OK"}
        rows.append(
            [
                f"{kind} of {name}",
                str(tally.sent),
                f"{len(tally.latencies_ms) / max(1, tally.sent):.2%}",
                f"{p50:.1f}",
                f"{p99:.1f}",
                f"{np.mean(tally.sizes or [np.nan]):.1f}",
                ", ".join(f"{code} {count}" for code, count in sorted(others.items())) or "none",
            ]
        )
    header = ["asked", "requests", "in time", "p50 (ms)", "p99 (ms)", "mean size", "others"]
    return aligned(header, rows, words={"asked", "others"})


def _costs(doors: dict[str, _Door], message: bytes, calls: int) -> str:
    times: dict[str, list[float]] = {name: [] for name in doors}
    for turn in range(-20, calls):
        for name, door in doors.items():
            taken_ms = door.timed(message)
            if turn >= 0:
                times[name].append(taken_ms)
    direct = np.median(times["hne-serve"])
    rows = [
        [
            name,
            f"{np.median(ms):.2f}",
            f"{np.percentile(ms, 95):.2f}",
            f"{np.median(ms) - direct:+.2f}",
        ]
        for name, ms in times.items()
    ]
    header = ["one image, ensemble_1", "p50 (ms)", "p95 (ms)", "added at p50 (ms)"]
    return aligned(header, rows, words={header[0]})


def _throughput(door: _Door, message: bytes, seconds: float = 3.0, lanes: int = 4) -> float:
    """Requests per second that are answered when some are always under way."""
    end = time.perf_counter() + seconds

    def lane() -> int:
        count = 0
        while time.perf_counter() < end:
            door.call(message, timeout=60)
            count += 1
        return count

    with concurrent.futures.ThreadPoolExecutor(lanes) as pool:
        return sum(pool.map(lambda _: lane(), range(lanes))) / seconds


def _message(images: np.ndarray, signature: str) -> bytes:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "cifar"
    request.model_spec.signature_name = signature
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
    return request.SerializeToString()


def _size(message: bytes) -> int:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    outputs = predict_pb2.PredictResponse.FromString(message).outputs
    return int(tf.make_ndarray(outputs["size"])[0]) if "size" in outputs else 16


@contextlib.contextmanager
def _servers(base: pathlib.Path) -> Iterator[dict[str, str]]:
    """Addresses of the servers by name."""
    with contextlib.ExitStack() as stack:
        serve = [sys.executable, "-m", "hne_tf.bin.serve", "--port=0"]

        def start(command: Sequence[str]) -> str:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            line = process.stdout.readline()
            found = re.search(r"address=(\S+)", line)
            if found is None:
                raise InputError(f"a server must say its address, got {line!r}")
            return found.group(1)

        direct = start([*serve, f"--model_base_path={base}"])
        found = {
            "hne-serve": direct,
            "gateway": start([*serve, f"--upstream={direct}"]),
            "bare proxy": start([sys.executable, "-c", _BARE, _PREDICT, direct]),
        }
        binary = os.environ.get("TENSORFLOW_MODEL_SERVER") or shutil.which(
            "tensorflow_model_server"
        )
        if binary:
            stock = _stock(stack, binary, base)
            name = "gateway before tensorflow_model_server"
            found[name] = start([*serve, f"--upstream={stock}"])
        yield found


def _stock(stack: contextlib.ExitStack, binary: str, base: pathlib.Path) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [binary, f"--port={port}", f"--model_name={base.name}", f"--model_base_path={base}"]
    output = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=output, stderr=output)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    address = f"127.0.0.1:{port}"
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(timeout=_START_S)
    return address


def _publish(path: pathlib.Path) -> None:
    """The folded small preset of 16 leaves, as it is before training."""
    from hne_tf.export import signatures
    from hne_tf.image_spec import ImageSpec
    from hne_tf.models import folding, weights
    from hne_tf.models.architectures import ResNet
    from hne_tf.models.ensemble import TreeEnsemble
    from hne_tf.models.layers.deploy import DeployLayers
    from hne_tf.models.layers.training import TrainingLayers
    from hne_tf.tree import Tree

    cifar = ImageSpec((32, 32, 3), tuple("0123456789"), (125.0,) * 3, (63.0,) * 3)
    tree = Tree((1, 2, 2, 2, 2))
    trained = TreeEnsemble(ResNet.presets["small"], tree, cifar, TrainingLayers())
    model = TreeEnsemble(ResNet.presets["small"], tree, cifar, DeployLayers())
    weights.load(model, folding.fold(weights.read(trained)))
    signatures.save(signatures.signatures(model, tree.sizes), str(path))


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    return app.run("anytime_deadline", define_flags, main, argv, app.in_calls)


if __name__ == "__main__":
    sys.exit(run())
