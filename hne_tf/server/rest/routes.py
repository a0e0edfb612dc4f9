"""What a request line asks for: TF Serving's paths."""

import dataclasses
import enum
import re
import urllib.parse

import grpc
from tensorflow_serving.apis import model_pb2

from hne_tf.server.errors import RequestError

_VERSION = r"(?:/versions/([0-9]+)|/labels/([^/:]+))?"
_POST = re.compile(rf"/v1/models/([^/:]+){_VERSION}:(classify|regress|predict)", re.IGNORECASE)
_GET = re.compile(rf"/v1/models(?:/([^/:]+))?{_VERSION}(?:/(metadata))?", re.IGNORECASE)
_LARGEST_VERSION = 2**63 - 1


class Ask(enum.Enum):
    """What can be asked for."""

    PREDICT = "predict"
    CLASSIFY = "classify"
    REGRESS = "regress"
    STATUS = "status"
    METADATA = "metadata"


@dataclasses.dataclass(frozen=True)
class Route:
    """A request line that is understood.

    Attributes:
      ask: what is asked for.
      spec: of which model and version.
    """

    ask: Ask
    spec: model_pb2.ModelSpec


def route(method: str, path: str) -> Route:
    """Reads a method and a path that is still percent-encoded, without its query.

    Raises:
      RequestError: INVALID_ARGUMENT for a path or a method that there is not below
        `/v1/`, as in TF Serving; NOT_FOUND for any other path.
    """
    if not path.lower().startswith("/v1/"):
        raise RequestError(
            grpc.StatusCode.NOT_FOUND, f"the path must begin with /v1/models/, got {path[:200]!r}"
        )
    pattern = {"GET": _GET, "POST": _POST}.get(method)
    found = pattern.fullmatch(path) if pattern else None
    if found is None:
        raise _invalid(
            "a request must be GET /v1/models/<name>[/versions/<n>][/metadata] or "
            f"POST /v1/models/<name>[/versions/<n>]:predict, got {method[:20]} {path[:200]}"
        )
    name, version, label, rest = found.groups()
    if name is None:
        raise _invalid(f"the path must name a model, got {path[:200]!r}")
    spec = model_pb2.ModelSpec(name=urllib.parse.unquote(name))
    if version:
        # Python refuses to read thousands of digits.
        if len(version) > 19 or int(version) > _LARGEST_VERSION:
            raise _invalid(f"a version must be at most {_LARGEST_VERSION}, got {version[:100]}")
        spec.version.value = int(version)
    elif label:
        spec.version_label = urllib.parse.unquote(label)
    return Route(Ask(rest.lower()) if rest else Ask.STATUS, spec)


def _invalid(message: str) -> RequestError:
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)
