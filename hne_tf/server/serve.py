"""The embedded server as a context: versions below a base path, answered over gRPC and REST."""

import contextlib
import dataclasses
import functools
import logging
import pathlib
import ssl
from collections.abc import Callable, Iterator

from hne_tf.errors import InputError
from hne_tf.server import service
from hne_tf.server.catalog import Catalog
from hne_tf.server.metrics import ServerMetrics
from hne_tf.server.servable import AUTO, Servable
from hne_tf.server.tracing.access_log import AccessLog
from hne_tf.server.tracing.tracer import Tracer
from hne_tf.server.watcher import VersionWatcher


@contextlib.contextmanager
def serve(
    model_base_path: str | pathlib.Path,
    *,
    model_name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    options: service.Options | None = None,
    metrics_port: int = 0,
    rest_port: int | None = None,
    rest_tls: ssl.SSLContext | None = None,
    access_log: str | pathlib.Path | None = None,
    poll_interval_s: float = 1.0,
    drain_s: float = 10.0,
    runtime: str = AUTO,
    report: Callable[[str], None] = print,
) -> Iterator[service.RunningServer]:
    """Serves the newest version of a model while the block runs.

    Args:
      model_base_path: folder with one folder per version, as `export` writes it.
      model_name: name that requests ask for; the base path's folder name by default.
      host: address to listen on.
      port: port to listen on; 0 for any free one.
      options: how much the server takes on; `Options()` by default.
      metrics_port: port of Prometheus metrics; 0 for none.
      rest_port: port of TF Serving's RESTful API; 0 for any free one, None for none.
      rest_tls: its TLS; `options.credentials` are gRPC's.
      access_log: file that gets a line of JSON per prediction; `-` for standard output.
      poll_interval_s: seconds between two looks for new versions; 0 for never.
      drain_s: seconds that predictions under way have when the block ends.
      runtime: what computes, `"tensorflow"`, `"litert"` or `"auto"`, see `Servable`.
      report: gets a line per version that comes or goes.

    Yields:
      The running server: `address` is what a client takes, `version` what it serves.

    Raises:
      InputError: if there is no version that can be loaded, a port is taken, the access
        log cannot be written, or gRPC would be encrypted and REST not.
      MissingExtraError: for a `rest_port` without the package that it takes.

    Example:
      >>> with serve("models/digits") as server:
      ...     BudgetClient(server.address, "digits").predict(images, budget_ms=20)
    """
    base_path = pathlib.Path(model_base_path)
    options = options or service.Options()
    if rest_port is not None:
        if (options.credentials is None) != (rest_tls is None):
            raise InputError("TLS must be given for both of gRPC and REST, got it for one")
        # A package that is missing is told before a model is loaded.
        from hne_tf.server.rest import door
    with contextlib.ExitStack() as cleanup:
        cleanup.enter_context(_without_tracebacks())
        catalog = Catalog(model_name or base_path.resolve().name, ServerMetrics())
        slots = options.threads if options else 0
        load = functools.partial(Servable, runtime=runtime, slots=slots)
        watcher = VersionWatcher(catalog, base_path, poll_interval_s, report, load)
        watcher.start()
        cleanup.callback(watcher.stop, drain_s)
        if metrics_port:
            cleanup.callback(catalog.metrics.serve(host, metrics_port))
        tracer = Tracer(_opened(access_log, catalog.metrics, cleanup))
        server = service.start(catalog, host, port, options, tracer)
        doors = cleanup.enter_context(contextlib.ExitStack())
        doors.callback(server.stop, drain_s)
        if rest_port is not None:
            rest = door.RestDoor(server.inside, host, rest_port, rest_tls)
            # That drains the predictions of both, whose answers are still to be sent.
            drain = doors.pop_all()
            doors.callback(rest.stop)
            doors.push(drain)
            server = dataclasses.replace(server, rest_address=rest.address)
        yield server


def _opened(
    path: str | pathlib.Path | None, metrics: ServerMetrics, cleanup: contextlib.ExitStack
) -> AccessLog | None:
    if path is None:
        return None
    log = AccessLog(path, metrics.line_lost)
    cleanup.callback(log.close)
    return log


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Keeps gRPC from logging one for every message that is not one of TF Serving's."""

    # A function of its own, because servers in one process end in any order.
    def drop(record: logging.LogRecord) -> bool:
        del record
        return False

    logger = logging.getLogger("grpc._common")
    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)
