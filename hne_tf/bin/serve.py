"""Serves an exported model over TF Serving's gRPC API, without TF Serving.

The embedded default for a machine that has no TF Serving: the same requests,
answers and error codes, from Python. Listens on this machine only unless told
otherwise. New versions are taken into service as they are published.

  python -m hne_tf.bin.serve --model_base_path=models/digits

With upstreams it is a gateway in front of TF Serving or servers like this one: it
answers signature `anytime` from the ensembles there and passes all else through.

  python -m hne_tf.bin.serve --port=8600 --upstream=10.0.0.1:8500,10.0.0.2:8500

With --spread all upstreams answer one `anytime` together. Each computes some leaves of a
model that was exported with hne-export --spread:

  python -m hne_tf.bin.serve --port=8600 --upstream=10.0.0.1:8500,10.0.0.2:8500 --spread

--rest_port takes the package of an extra: pip install 'hne_tf[rest]'.
"""

import contextlib
import functools
import pathlib
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
    import ssl

    import grpc

# What a gateway leaves to the servers behind it.
_EMBEDDED = (
    "threads",
    "max_rows",
    "max_batch_size",
    "batch_timeout_micros",
    "poll_interval_s",
    "rest_port",
    "access_log",
)


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
    flags.DEFINE_list(
        "upstream",
        [],
        "HOST:PORT of servers to be a gateway for; the base path then only tells latencies.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "spread",
        False,
        "Have all servers of --upstream answer anytime together, each with some of the leaves of "
        "a model exported with hne-export --spread.",
        flag_values=values,
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
    flags.DEFINE_integer(
        "rest_port",
        None,
        "Port of TF Serving's RESTful API on --host; 0 for any free one. None without.",
        lower_bound=0,
        upper_bound=65535,
        flag_values=values,
    )
    path("access_log", None, "File that gets a JSON line per prediction; - for standard output.")
    seconds("drain_s", 10.0, "How long predictions have to finish after SIGTERM.")


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Serves until SIGTERM or SIGINT."""
    app.reject_positional(arguments)
    if values.upstream:
        return _gateway(values)
    if values.spread:
        raise InputError("--spread must have the servers of --upstream to ask, got none")
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
            rest_port=values.rest_port,
            rest_tls=None if values.rest_port is None else _tls(values),
            access_log=values.access_log,
            poll_interval_s=values.poll_interval_s,
            drain_s=values.drain_s,
            runtime=values.runtime,
            report=_report,
        ) as server:
            rest = f" rest={server.rest_address}" if server.rest_address else ""
            print(
                f"hne-serve: embedded Python server, not TF Serving: model={server.model} "
                f"version={server.version} address={server.address}{rest}",
                flush=True,
            )
            _wait(stopped)
    print("hne-serve: stopped", flush=True)


def _gateway(values: flags.FlagValues) -> None:
    """Passes requests on until SIGTERM or SIGINT."""
    others = [name for name in _EMBEDDED if values[name].present]
    if others:
        raise InputError(
            f"--upstream makes a gateway, which takes no --{others[0]}, "
            f"got --upstream={','.join(values.upstream)}"
        )
    if values.spread and values.model_base_path:
        raise InputError(
            "--spread asks all servers, so that it takes no latencies of --model_base_path, "
            f"got {values.model_base_path}"
        )
    options = _options(values)
    prior = name = None
    if values.model_base_path:
        prior = read_manifest(values.model_base_path).latency_ms
        name = values.model_name or pathlib.Path(values.model_base_path).resolve().name
    from hne_tf.gateway.run import GatewayOptions, gateway

    with (
        _stop_signals() as stopped,
        gateway(
            values.upstream,
            host=values.host,
            port=values.port,
            options=GatewayOptions(
                most_predictions=options["max_queued_requests"],
                max_message_bytes=options["max_message_bytes"],
                credentials=options["credentials"],
                model_name=name or "",
                prior=prior,
                spread=values.spread,
            ),
            metrics_port=values.metrics_port,
            drain_s=values.drain_s,
        ) as running,
    ):
        spread = " spread" if values.spread else ""
        print(
            f"hne-serve: gateway:{spread} upstream={','.join(values.upstream)} "
            f"address={running.address}",
            flush=True,
        )
        _wait(stopped)
    print("hne-serve: stopped", flush=True)


def _wait(stopped: threading.Event) -> None:
    # A signal that the system hands to another thread does not end an untimed wait.
    while not stopped.wait(timeout=0.2):
        pass


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


def _tls(values: flags.FlagValues) -> "ssl.SSLContext | None":
    """The same TLS for REST; the flags have been checked."""
    if values.tls_certificate is None:
        return None
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password, for which it would ask at the terminal.
        context.load_cert_chain(values.tls_certificate, values.tls_key, password="")
        if values.tls_client_ca is not None:
            context.load_verify_locations(values.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as error:
        raise InputError(f"the TLS certificate or key is invalid: {error.reason}") from None
    return context


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


def _onednn(values: flags.FlagValues) -> bool | str | None:
    """What the newest version was measured to be faster with."""
    if values.upstream:
        return app.WITHOUT_TENSORFLOW
    manifest = _newest_manifest(values)
    return manifest.latency.onednn if manifest and manifest.latency else None


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the binary; returns its exit code."""
    return app.run("hne-serve", define_flags, main, argv, _onednn)


if __name__ == "__main__":
    sys.exit(run())
