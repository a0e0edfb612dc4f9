"""Serves an exported model over TF Serving's gRPC API, without TF Serving.

The embedded default for a machine that has no TF Serving: the same requests,
answers and error codes, from Python. Listens on this machine only unless told
otherwise.

  python -m serving.local_server --model_base_path=models/digits
"""

import contextlib
import pathlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from absl import flags

from hne_tf.bin import app
from hne_tf.errors import InputError


def define_flags(values: flags.FlagValues, arguments: list[str]) -> None:
    """Adds the server's flags to `values`."""
    del arguments
    flags.DEFINE_string(
        "model_base_path",
        None,
        "Folder with one folder per version; the largest is served.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "model_name",
        None,
        "Name that requests ask for; the base path's folder name by default.",
        flag_values=values,
    )
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.", flag_values=values)
    flags.DEFINE_integer(
        "port",
        8500,
        "Port to listen on; 0 for any free one.",
        lower_bound=0,
        upper_bound=65535,
        flag_values=values,
    )


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Serves until SIGTERM or SIGINT."""
    app.reject_positional(arguments)
    if not values.model_base_path:
        raise InputError("--model_base_path must name the model's folder, got none")
    base_path = pathlib.Path(values.model_base_path)
    name = values.model_name or base_path.resolve().name
    with _stop_signals() as stopped:
        with app.quiet_import():
            from serving import servable, service
        model = servable.Servable(name, servable.latest_version_path(base_path))
        server = service.start(model, values.host, values.port)
        print(
            f"hne-serve: embedded Python server, not TF Serving: model={name} "
            f"version={model.version} address={server.address}",
            flush=True,
        )
        stopped.wait()
        server.stop()
    print("hne-serve: stopped", flush=True)


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM and SIGINT set instead of ending the process."""
    stopped = threading.Event()
    previous = {
        number: signal.signal(number, lambda *_: stopped.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the binary; returns its exit code."""
    return app.run("hne-serve", define_flags, main, argv)


if __name__ == "__main__":
    sys.exit(run())
