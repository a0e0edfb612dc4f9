"""Which model and version a request means."""

import grpc
from tensorflow_serving.apis import get_model_status_pb2, model_pb2

from serving.errors import RequestError
from serving.servable import Servable


class Catalog:
    """The servables on offer: the one place that resolves a `ModelSpec`.

    Codes are those of TF Serving's `server_core.cc`, `basic_manager.cc` and
    `get_model_status_impl.cc`, run without a model config file.
    """

    def __init__(self, servable: Servable) -> None:
        self._servable = servable

    def find(self, model_spec: model_pb2.ModelSpec) -> Servable:
        """Returns the servable that `model_spec` asks for.

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
        self._check_served(model_spec)
        return self._servable

    def statuses(
        self, model_spec: model_pb2.ModelSpec
    ) -> list[get_model_status_pb2.ModelVersionStatus]:
        """Returns the state of every version that `model_spec` asks for.

        Version labels are not looked at, as in TF Serving.

        Raises:
          RequestError: NOT_FOUND for an unknown model or version.
        """
        self._check_served(model_spec)
        status = get_model_status_pb2.ModelVersionStatus(
            version=self._servable.version,
            state=get_model_status_pb2.ModelVersionStatus.AVAILABLE,
        )
        # OK is this message's default, which would otherwise not be sent at all.
        status.status.SetInParent()
        return [status]

    def _check_served(self, model_spec: model_pb2.ModelSpec) -> None:
        served = self._servable
        if model_spec.name != served.name:
            raise RequestError(
                grpc.StatusCode.NOT_FOUND,
                f"the model served is {served.name!r}, got {model_spec.name!r}",
            )
        if model_spec.HasField("version") and model_spec.version.value != served.version:
            raise RequestError(
                grpc.StatusCode.NOT_FOUND,
                f"the version served of {served.name!r} is {served.version}, "
                f"got {model_spec.version.value}",
            )
