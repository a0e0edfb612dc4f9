"""Listens for HTTP in a thread of its own."""

import asyncio
import logging
import ssl
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from hne_tf.client import transport
from hne_tf.errors import InputError, extra
from hne_tf.server.rest import answers
from hne_tf.server.rest.handlers import Handlers
from hne_tf.server.service import Inside

with extra("rest"):
    from aiohttp import web

T = TypeVar("T")

_IDLE_S = 75.0
# Of a request that is refused before its body has come.
_UNREAD_S = 5.0
# For the last bytes of answers.
_LAST_BYTES_S = 1.0


class RestDoor:
    """TF Serving's RESTful API in front of a running server.

    Args:
      inside: what answers.
      host: address to listen on.
      port: port to listen on; 0 for any free one.
      tls: the server's certificate; None for plaintext.

    Attributes:
      address: what a client's URLs begin with.

    Raises:
      InputError: if the address cannot be listened on.
    """

    def __init__(self, inside: Inside, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rest", daemon=True)
        self._thread.start()
        try:
            self._runner = self._await(_listen(Handlers(inside), host, port, tls))
        except OSError as error:
            self._end()
            raise InputError(f"cannot listen on {host}:{port} for REST: {error}") from error
        bound = self._runner.addresses[0][1]
        self.address = f"http{'s' if tls else ''}://{transport.address(host, bound)}"

    def stop(self) -> None:
        """Closes the port and every connection; predictions have been drained before."""
        self._await(self._runner.cleanup())
        self._end()

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end(self) -> None:
        self._await(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _listen(
    handlers: Handlers, host: str, port: int, tls: ssl.SSLContext | None
) -> web.ServerRunner:
    server = _Server(
        handlers.handle,
        handler_cancellation=True,
        keepalive_timeout=_IDLE_S,
        lingering_time=_UNREAD_S,
        auto_decompress=False,
        access_log=None,
    )
    runner = web.ServerRunner(server, shutdown_timeout=_LAST_BYTES_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    """Tells errors of HTTP itself in JSON, too, and logs those of this program only."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500:
            logging.getLogger(__name__).error("a request failed", exc_info=exc)
            message = "the server failed"
        response = web.Response(
            body=answers.failure(" ".join((message or "the request must be HTTP").split())),
            status=status,
            content_type="application/json",
        )
        response.force_close()
        return response
