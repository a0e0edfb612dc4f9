"""Which model and version a request means, and which versions there are."""

import contextlib
import threading
from collections.abc import Iterator

import grpc
from tensorflow_serving.apis import get_model_status_pb2, model_pb2

from hne_tf.server.errors import RequestError
from hne_tf.server.metrics import ServerMetrics
from hne_tf.server.servable import Servable

_Status = get_model_status_pb2.ModelVersionStatus
State = _Status.State


class Catalog:
    """One model's versions: the one place that resolves a `ModelSpec`.

    One version is served at a time. Codes are those of TF Serving's
    `server_core.cc`, `basic_manager.cc` and `get_model_status_impl.cc`, run
    without a model config file.

    Args:
      name: the model's.
      metrics: told of versions.

    Attributes:
      name: as given.
      metrics: as given.
    """

    def __init__(self, name: str, metrics: ServerMetrics) -> None:
        self.name = name
        self.metrics = metrics
        self._lock = threading.Lock()
        self._served: Servable | None = None
        self._users: dict[Servable, int] = {}
        self._statuses: dict[int, _Status] = {}

    @property
    def served(self) -> Servable | None:
        """What answers requests; None before the first `publish`."""
        return self._served

    def publish(self, servable: Servable) -> None:
        """Answers with `servable` from now on; the one before is closed after its last request."""
        with self._lock:
            before, self._served = self._served, servable
            self._users[servable] = 0
            self._set_state(servable.version, State.AVAILABLE)
            if before is not None:
                self.metrics.swapped()
                self._set_state(before.version, State.UNLOADING)
                self._close_if_unused(before)
            self.metrics.versions(servable.version, len(self._users))

    def loading(self, version: int) -> None:
        """A version is being loaded."""
        with self._lock:
            self._set_state(version, State.LOADING)

    def refused(self, version: int, reason: str) -> None:
        """A version could not be loaded."""
        with self._lock:
            self.metrics.load_failed()
            self._set_state(version, State.END, reason)

    @contextlib.contextmanager
    def lease(self, model_spec: model_pb2.ModelSpec) -> Iterator[Servable]:
        """Yields the servable that `model_spec` asks for and keeps it loaded meanwhile.

        Raises:
          RequestError: INVALID_ARGUMENT without a name or with a version label
            (labels are given in a model config file, and there is none),
            NOT_FOUND for an unknown model or version.
        """
        if not model_spec.name:
            raise RequestError(
                grpc.StatusCode.INVALID_ARGUMENT, "model_spec must have a name, got none"
            )
        if model_spec.WhichOneof("version_choice") == "version_label":
            raise RequestError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"this server has no version labels, got {model_spec.version_label!r}",
            )
        self._check_name(model_spec)
        with self._lock:
            served = self._served
            if served is None or (
                model_spec.HasField("version") and model_spec.version.value != served.version
            ):
                raise self._no_version(model_spec)
            self._users[served] += 1
        try:
            yield served
        finally:
            with self._lock:
                self._users[served] -= 1
                self._close_if_unused(served)

    def statuses(self, model_spec: model_pb2.ModelSpec) -> list[_Status]:
        """Returns the state of every version that `model_spec` asks for, the newest first.

        Version labels are not looked at, as in TF Serving.

        Raises:
          RequestError: NOT_FOUND for an unknown model or version.
        """
        self._check_name(model_spec)
        with self._lock:
            if not model_spec.HasField("version"):
                return [self._statuses[version] for version in sorted(self._statuses, reverse=True)]
            if model_spec.version.value not in self._statuses:
                raise self._no_version(model_spec)
            return [self._statuses[model_spec.version.value]]

    def _check_name(self, model_spec: model_pb2.ModelSpec) -> None:
        if model_spec.name != self.name:
            raise RequestError(
                grpc.StatusCode.NOT_FOUND,
                f"the model served is {self.name!r}, got {model_spec.name!r}",
            )

    def _no_version(self, model_spec: model_pb2.ModelSpec) -> RequestError:
        served = "none" if self._served is None else self._served.version
        return RequestError(
            grpc.StatusCode.NOT_FOUND,
            f"the version served of {self.name!r} is {served}, got {model_spec.version.value}",
        )

    def _set_state(self, version: int, state: State, reason: str = "") -> None:
        status = _Status(version=version, state=state)
        # OK is this message's default, which would otherwise not be sent at all.
        status.status.SetInParent()
        if reason:
            status.status.error_code = grpc.StatusCode.FAILED_PRECONDITION.value[0]
            status.status.error_message = reason
        self._statuses[version] = status

    def _close_if_unused(self, servable: Servable) -> None:
        if servable is self._served or self._users[servable]:
            return
        del self._users[servable]
        servable.close()
        # Unless the same version is being loaded again.
        if self._statuses[servable.version].state == State.UNLOADING:
            self._set_state(servable.version, State.END)
        self.metrics.versions(self._served.version, len(self._users))
