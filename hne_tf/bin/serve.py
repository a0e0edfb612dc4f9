"""Serves an exported model over TF Serving's gRPC API, without TF Serving.

The embedded default for a machine that has no TF Serving: the same requests,
answers and error codes, from Python. Listens on this machine only unless told
otherwise. New versions are taken into service as they are published.

  python -m hne_tf.bin.serve --model_base_path=models/digits
"""

import contextlib
import functools
import signal
import sys
import threading
import typing
from collections.abc import Iterator, Sequence

from absl import flags

from hne_tf import hardware
from hne_tf.bin import app
from hne_tf.client import transport
from hne_tf.errors import InputError
from hne_tf.exported.manifest import Manifest, read_manifest

if typing.TYPE_CHECKING:
    import grpc


def define_flags(values: flags.FlagValues, arguments: list[str]) -> None:
    """Adds the server's flags to `values`."""
    del arguments
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    path = functools.partial(app.define_path, values)
    count = functools.partial(flags.DEFINE_integer, lower_bound=0, flag_values=values)
    seconds = functools.partial(flags.DEFINE_float, lower_bound=0.0, flag_values=values)
    path("model_base_path", None, "Folder with one folder per version; the largest is served.")
    text(
        "model_name",
        None,
        "Name that requests ask for; the base path's folder name by default.",
    )
    text("host", "127.0.0.1", "Address to listen on.")
    count("port", 8500, "Port to listen on; 0 for any free one.", upper_bound=65535)
    flags.DEFINE_enum(
        "runtime",
        "auto",
        ["auto", "tensorflow", "litert"],
        "What computes: litert takes the TFLite file that hne-export --litert puts into a version; "
        "auto takes what was measured to be faster.",
        flag_values=values,
    )
    seconds("poll_interval_s", 1.0, "Seconds between two looks for new versions; 0 for never.")
    count(
        "threads",
        0,
        "Predictions or batches computed at a time; 0 for as many as there are cores for.",
    )
    count("max_queued_requests", 128, "Predictions that wait; beyond it they are refused at once.")
    flags.DEFINE_integer(
        "max_rows",
        128,
        "Rows of a request, which bound what it may cost; with batching also a batch's.",
        lower_bound=1,
        flag_values=values,
    )
    count("max_batch_size", 0, "Rows of a batch of requests of one signature; 0 for no batching.")
    count("batch_timeout_micros", 1000, "How long the first request of a batch waits for others.")
    count(
        "max_message_bytes",
        transport.MAX_MESSAGE_BYTES,
        "Largest request; larger ones are refused unread.",
        upper_bound=2**31 - 1,
    )
    path("tls_certificate", None, "PEM file of the server's certificate chain; plaintext without.")
    path("tls_key", None, "PEM file of the certificate's private key.")
    path("tls_client_ca", None, "PEM file; clients must show a certificate that it has signed.")
    count("metrics_port", 0, "Port of Prometheus metrics on --host; 0 for none.", upper_bound=65535)
    seconds("drain_s", 10.0, "How long predictions have to finish after SIGTERM.")


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Serves until SIGTERM or SIGINT."""
    app.reject_positional(arguments)
    if not values.model_base_path:
        raise InputError("--model_base_path must name the model's folder, got none")
    options = _options(values)
    manifest = _newest_manifest(values)
    if manifest and manifest.latency and manifest.latency.side_by_side:
        hardware.prefer_one_thread_an_operation()
    with _stop_signals() as stopped:
        with app.quiet_import():
            from hne_tf.server import service
            from hne_tf.server.serve import serve
        with serve(
            values.model_base_path,
            model_name=values.model_name,
            host=values.host,
            port=values.port,
            options=service.Options(**options),
            metrics_port=values.metrics_port,
            poll_interval_s=values.poll_interval_s,
            drain_s=values.drain_s,
            runtime=values.runtime,
            report=_report,
        ) as server:
            print(
                f"hne-serve: embedded Python server, not TF Serving: model={server.model} "
                f"version={server.version} address={server.address}",
                flush=True,
            )
            # A signal that the system hands to another thread does not end an untimed wait.
            while not stopped.wait(timeout=0.2):
                pass
    print("hne-serve: stopped", flush=True)


def _options(values: flags.FlagValues) -> dict[str, typing.Any]:
    """The flags of `service.Options`, checked before TensorFlow is loaded."""
    names = (
        "threads",
        "max_queued_requests",
        "max_rows",
        "max_batch_size",
        "batch_timeout_micros",
    )
    if not values.max_message_bytes:
        raise InputError("--max_message_bytes must be positive, got 0")
    return {
        **{name: values[name].value for name in (*names, "max_message_bytes")},
        "credentials": _credentials(values),
    }


def _credentials(values: flags.FlagValues) -> "grpc.ServerCredentials | None":
    if values.tls_certificate is None and values.tls_key is None and values.tls_client_ca is None:
        return None
    if values.tls_certificate is None or values.tls_key is None:
        raise InputError(
            "TLS takes both --tls_certificate and --tls_key, got "
            f"--tls_certificate={values.tls_certificate} and --tls_key={values.tls_key}"
        )
    certificate, key, client_ca = (
        None if values[flag].value is None else app.pem(flag, values[flag].value)
        for flag in ("tls_certificate", "tls_key", "tls_client_ca")
    )
    import grpc

    return grpc.ssl_server_credentials(
        [(key, certificate)], client_ca, require_client_auth=client_ca is not None
    )


def _report(line: str) -> None:
    print(f"hne-serve: {line}", file=sys.stderr, flush=True)


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


def _newest_manifest(values: flags.FlagValues) -> Manifest | None:
    try:
        return read_manifest(values.model_base_path or "")
    except InputError:
        # A SavedModel of others has no manifest; that there is no version is told later.
        return None


def _onednn(values: flags.FlagValues) -> bool | None:
    """What the newest version was measured to be faster with."""
    manifest = _newest_manifest(values)
    return manifest.latency.onednn if manifest and manifest.latency else None


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the binary; returns its exit code."""
    return app.run("hne-serve", define_flags, main, argv, _onednn)


if __name__ == "__main__":
    sys.exit(run())
