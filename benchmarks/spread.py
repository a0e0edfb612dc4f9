"""Time of one answer from two servers of a core each, beside one server of a core.

    python benchmarks/spread.py

A tree of 16 leaves with random weights is served by `hne-serve` processes that are kept
to one core each, where TensorFlow has one thread. One alone computes `ensemble_16`, and
two compute half of the leaves each for a `SpreadClient`, in turns. The client needs a
little of a core, too.

On a busy machine the time of an answer depends on what else runs. So the processors' time
of the server that computes longest is told beside it. Linux only.
"""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import flags

from hne_tf.bin import app
from hne_tf.errors import InputError

_MODEL = "spread"
_TIMEOUT_S = 600.0
# Of TensorFlow; by default as many as the process has cores.
_ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}


class Server(NamedTuple):
    """A server in a process of its own.

    Attributes:
      address: `host:port`.
      process: its number.
    """

    address: str
    process: int

    @property
    def cpu_ms(self) -> float:
        """Milliseconds that its threads have computed."""
        threads = pathlib.Path(f"/proc/{self.process}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e6


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this benchmark."""
    del argv
    flags.DEFINE_list(
        "branching", ["2", "2", "2", "2", "1"], "Of the tree, a factor a block.", flag_values=values
    )
    flags.DEFINE_list("batch_sizes", ["1", "16", "64"], "Images of a request.", flag_values=values)
    flags.DEFINE_integer("rounds", 40, "Timed calls of each.", lower_bound=1, flag_values=values)
    app.define_path(values, "results", None, "Also write the table to this Markdown page.")


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints the table."""
    app.reject_positional(positional)
    branching = tuple(app.integers("branching", values.branching))
    batch_sizes = app.integers("batch_sizes", values.batch_sizes)
    # Where a process cannot be kept to some cores, there is no list of them.
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        raise InputError(f"two servers need a core each, got {len(cores)} core")
    with app.quiet_import():
        from hne_tf.evaluation import results

    with tempfile.TemporaryDirectory() as folder:
        shared = _export(pathlib.Path(folder) / _MODEL, branching)
        with contextlib.ExitStack() as stack:
            servers = [_server(pathlib.Path(folder) / _MODEL, core) for core in cores[:2]]
            running = [stack.enter_context(server) for server in servers]
            rows = [_row(running, batch_size, values.rounds) for batch_size in batch_sizes]
    table = _page(rows, branching, shared)
    print(table)
    if values.results:
        command = ["python", *app.command("benchmarks/spread.py", values)]
        page = pathlib.Path(values.results)
        results.write_page(page, "One answer from two servers", command, table)


def _export(base: pathlib.Path, branching: tuple[int, ...]) -> float:
    """Writes a version; returns the cost of half of the leaves as a part of that of all."""
    from hne_tf.evaluation import cost
    from hne_tf.export import signatures
    from hne_tf.exported.interface import split
    from hne_tf.image_spec import ImageSpec
    from hne_tf.models.architectures import ResNet
    from hne_tf.models.ensemble import TreeEnsemble
    from hne_tf.models.folding import deployed
    from hne_tf.tree import Tree

    cifar = ImageSpec((32, 32, 3), tuple("0123456789"), (125.0,) * 3, (63.0,) * 3)
    model = deployed(TreeEnsemble(ResNet.presets["small"], Tree(branching), cifar))
    leaves = model.tree.leaves
    endpoints = signatures.signatures(model, (leaves,), None, split(leaves, 2))
    signatures.save(endpoints, str(base / "1"))
    # The first half costs what the second does: both are of the same shape.
    half, full = (cost.per_size(model, (leaves // 2, leaves))[n] for n in (leaves // 2, leaves))
    return half.multiply_adds / full.multiply_adds


@contextlib.contextmanager
def _server(base: pathlib.Path, core: int) -> Iterator[Server]:
    """A server on one core."""
    taskset = shutil.which("taskset")
    if taskset is None:
        raise InputError("a server is kept to a core by taskset, got none on the PATH")
    command = [taskset, "--cpu-list", str(core), sys.executable, "-m", "hne_tf.bin.serve"]
    with subprocess.Popen(
        [*command, f"--model_base_path={base}", "--port=0", "--threads=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # Linux shares cores among sessions: on a busy machine two servers of one session would
        # have no more of them than one alone.
        start_new_session=True,
        env={**os.environ, **_ONE_THREAD},
    ) as process:
        try:
            line = process.stdout.readline()
            if "address=" not in line:
                raise InputError(f"a server must tell its address, got {line!r}")
            yield Server(line.rsplit("address=", 1)[1].strip(), process.pid)
        finally:
            process.send_signal(signal.SIGTERM)


def _row(servers: Sequence[Server], batch_size: int, rounds: int) -> list[str]:
    """A row of the table, for requests of so many images."""
    from hne_tf.client.budget_client import ServingClient
    from hne_tf.client.spread_client import SpreadClient

    images = np.random.default_rng(0).integers(0, 256, (batch_size, 32, 32, 3), np.uint8)
    addresses = [server.address for server in servers]
    with ServingClient(addresses[0], _MODEL) as one, SpreadClient(addresses, _MODEL) as two:
        full = f"ensemble_{two.learn(_TIMEOUT_S).leaves}"

        def alone() -> np.ndarray:
            outputs = one.run(full, {"images": images}, ("probabilities",), _TIMEOUT_S)
            return outputs.arrays["probabilities"]

        def spread() -> np.ndarray:
            answer = two.predict(images, 1000 * _TIMEOUT_S)
            # A part that fails and is computed by the other server would not be what is timed.
            asked = [each.address for each in answer.attempts]
            if sorted(asked) != sorted(addresses):
                raise InputError(f"each server must compute one half, got {answer.attempts}")
            return answer.probabilities

        difference = float(np.abs(alone() - spread()).max())
        times: dict[str, list[tuple[float, float]]] = {"one": [], "two": []}
        order = random.Random(0)
        for _ in range(rounds):
            for name, call in order.sample([("one", alone), ("two", spread)], 2):
                times[name].append(_timed(call, servers))
    one_ms, one_cpu_ms = np.median(times["one"], axis=0)
    two_ms, two_cpu_ms = np.median(times["two"], axis=0)
    return [
        str(batch_size),
        *(f"{one_ms:.1f}", f"{two_ms:.1f}", f"{two_ms / one_ms:.2f}"),
        *(f"{one_cpu_ms:.1f}", f"{two_cpu_ms:.1f}", f"{two_cpu_ms / one_cpu_ms:.2f}"),
        f"{difference:.0e}",
    ]


def _timed(call: Callable[[], object], servers: Sequence[Server]) -> tuple[float, float]:
    """Milliseconds of the second of two calls, and of the processor of the busiest server."""
    # Whoever was in turn before has filled the caches with something else.
    call()
    before_ms = [server.cpu_ms for server in servers]
    started_s = time.perf_counter()
    call()
    elapsed_ms = 1000 * (time.perf_counter() - started_s)
    spent = zip(servers, before_ms, strict=True)
    return elapsed_ms, max(server.cpu_ms - before for server, before in spent)


def _page(rows: Sequence[Sequence[str]], branching: tuple[int, ...], shared: float) -> str:
    from hne_tf.evaluation.tables import aligned

    headers = ["images", "one server (ms)", "two (ms)", "two / one"]
    headers += ["one, processor (ms)", "two, the busier (ms)", "two / one", "largest difference"]
    return (
        f"{aligned(headers, rows)}\n\nMedians, calls in turns. In a tree {branching} half of the "
        f"leaves cost {shared:.2f} of the multiply-adds of all: what both servers compute, the "
        "shared blocks, is what keeps that above one half."
    )


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    return app.run("spread", define_flags, main, argv)


if __name__ == "__main__":
    sys.exit(run())
