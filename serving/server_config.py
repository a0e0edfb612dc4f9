"""What TF Serving's configuration files say of an export, and whether they fit it."""

import dataclasses
import re
from collections.abc import Iterator, Mapping

from hne_tf.errors import InputError
from hne_tf.hardware import ONEDNN_VARIABLE
from serving import config_protos

MODELS = "models.config"
BATCHING = "batching_parameters.txt"
MONITORING = "monitoring.config"
ENVIRONMENT = "server.env"
METRICS_PATH = "/monitoring/prometheus/metrics"
_PLATFORM = "tensorflow"

_THREADS = "GRPC_MAX_THREADS"
# --tensorflow_intra_op_parallelism and --tensorflow_inter_op_parallelism.
_INTRA_OP = "INTRA_OP_PARALLELISM"
_INTER_OP = "INTER_OP_PARALLELISM"
# Enough for 64 clients where nothing is batched; a thread that waits costs little.
_FEWEST_THREADS = 64


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """One model and how its requests are batched.

    Attributes:
      model: name that requests ask for.
      base_path: folder of the versions where the server runs.
      batch_sizes: increasing; batches are padded to the next of them.
      batch_timeout_micros: how long a request waits for others to share its batch.
      max_enqueued_batches: full queues refuse requests, which tells clients to
        ask for less.
      num_batch_threads: batches computed at once, the cores of the server.
      grpc_max_threads: requests held at once, see `least_threads`. By default two
        batches for each batch thread: one that is computed, one that fills.
      onednn: whether TensorFlow computes with oneDNN, which is faster or slower by the
        model; None leaves it to TensorFlow.
      side_by_side: whether an operation gets one thread, and others run beside it;
        otherwise it gets one for each core.
    """

    model: str
    base_path: str
    batch_sizes: tuple[int, ...]
    batch_timeout_micros: int = 1000
    max_enqueued_batches: int = 16
    num_batch_threads: int = 2
    grpc_max_threads: int | None = None
    onednn: bool | None = None
    side_by_side: bool = False

    @property
    def operation_threads(self) -> int:
        """Threads of one operation."""
        return 1 if self.side_by_side else self.num_batch_threads

    @property
    def threads(self) -> int:
        """`grpc_max_threads`, or what it is by default."""
        filling = 2 * self.num_batch_threads * self.batch_sizes[-1]
        return self.grpc_max_threads or max(_FEWEST_THREADS, filling)

    @property
    def least_threads(self) -> int:
        """Threads that two largest batches of single images need.

        A request holds a thread until it is answered, so with fewer threads no batch can
        be full, and beyond them TF Serving refuses: `Server Threadpool Exhausted`.
        """
        return 2 * self.batch_sizes[-1]


def files(settings: ServerSettings) -> dict[str, str]:
    """The text of each configuration file by name."""
    allowed = "\n".join(f"allowed_batch_sizes: {size}" for size in settings.batch_sizes)
    return {
        MODELS: f"""\
# ModelServerConfig: --model_config_file. A version that is published in the folder is loaded
# and warmed up beside the one before it, which goes when the new one answers.
model_config_list {{
  config {{
    name: "{settings.model}"
    base_path: "{settings.base_path}"
    model_platform: "{_PLATFORM}"
    model_version_policy {{ latest {{ num_versions: 1 }} }}
  }}
}}
""",
        BATCHING: f"""\
# BatchingParameters: --enable_batching --batching_parameters_file. Each signature, so each
# ensemble size, has a queue of its own.
max_batch_size {{ value: {settings.batch_sizes[-1]} }}
batch_timeout_micros {{ value: {settings.batch_timeout_micros} }}
max_enqueued_batches {{ value: {settings.max_enqueued_batches} }}
num_batch_threads {{ value: {settings.num_batch_threads} }}
# The sizes that the export warmed up and profiled: batches are padded to the next of them.
{allowed}
""",
        MONITORING: f"""\
# MonitoringConfig: --monitoring_config_file. Served on the port of --rest_api_port.
prometheus_config {{
  enable: true
  path: "{METRICS_PATH}"
}}
""",
        ENVIRONMENT: f"""\
# Environment of the server, for compose; Kubernetes has it in the ConfigMap.
# --grpc_max_threads. A request holds a thread until it is answered, and beyond them it is
# refused. TF Serving's own number is four per core.
{_THREADS}={settings.threads}
# --tensorflow_intra_op_parallelism: threads of one operation, of the faster way when the model
# was profiled. --tensorflow_inter_op_parallelism: operations at once, the cores of the server.
{_INTRA_OP}={settings.operation_threads}
{_INTER_OP}={settings.num_batch_threads}
"""
        + _onednn_line(settings),
    }


def _onednn_line(settings: ServerSettings) -> str:
    if settings.onednn is None:
        return ""
    return f"""\
# Whether TensorFlow computes with oneDNN: the faster setting when the model was profiled.
{ONEDNN_VARIABLE}={int(settings.onednn)}
"""


def config_map(contents: Mapping[str, str], name: str = "hne-serving") -> str:
    """The files as a Kubernetes ConfigMap in YAML; variables are keys of their own.

    Raises:
      InputError: for a line of an environment file that is not NAME=VALUE.
    """
    lines = [
        "# Written by serving.configure from the files in serving/config.",
        "apiVersion: v1",
        "kind: ConfigMap",
        "metadata:",
        f"  name: {name}",
        "data:",
    ]
    for file, text in contents.items():
        if file == ENVIRONMENT:
            lines += [f'  {name}: "{value}"' for name, value in environment(text).items()]
            continue
        lines.append(f"  {file}: |")
        lines += [f"    {line}" if line else "" for line in text.splitlines()]
    return "\n".join(lines) + "\n"


def environment(text: str) -> dict[str, str]:
    """Variables and their values in the text of `ENVIRONMENT`.

    Raises:
      InputError: for a line that sets none, or sets one again.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Z][A-Z0-9_]*)=([A-Za-z0-9_]+)", line)
        if not match or match[1] in found:
            raise InputError(f"a line must set a variable, each once, got {line!r}")
        found[match[1]] = match[2]
    return found


def differences(contents: Mapping[str, str], settings: ServerSettings) -> Iterator[str]:
    """What in the files breaks TF Serving's rules or does not fit the export, a line each.

    Timeouts, queues and threads are free to be tuned as long as they are positive.

    Args:
      contents: text by file name.
      settings: the export's model, base path and batch sizes.
    """
    checks = {
        MODELS: _models,
        BATCHING: _batching,
        MONITORING: _monitoring,
        ENVIRONMENT: _environment,
    }
    for name, check in checks.items():
        if name not in contents:
            yield f"{name} is missing"
            continue
        try:
            for finding in check(contents[name], settings):
                yield f"{name}: {finding}"
        except InputError as error:
            yield f"{name}: {error}"


def _models(text: str, settings: ServerSettings) -> Iterator[str]:
    config = config_protos.model_server_config(text)
    models = {model.name: model for model in config.model_config_list.config}
    for model in models.values():
        if not model.base_path.startswith("/") and "://" not in model.base_path:
            yield f"base_path must be absolute, got {model.base_path!r} of {model.name!r}"
        if model.model_platform != _PLATFORM:
            yield f"model_platform must be {_PLATFORM!r}, got {model.model_platform!r}"
    if len(models) != len(config.model_config_list.config):
        yield f"model names must differ, got {[m.name for m in config.model_config_list.config]}"
    if settings.model not in models:
        yield f"a model must be named {settings.model!r}, got {sorted(models)}"
    elif models[settings.model].base_path != settings.base_path:
        yield (
            f"base_path of {settings.model!r} must be {settings.base_path!r}, "
            f"got {models[settings.model].base_path!r}"
        )


def _batching(text: str, settings: ServerSettings) -> Iterator[str]:
    parameters = config_protos.batching_parameters(text)
    for field in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
        value = getattr(parameters, field).value
        if parameters.HasField(field) and value < 1:
            yield f"{field} must be 1 or more, got {value}"
    timeout = parameters.batch_timeout_micros.value
    if timeout < 0:
        yield f"batch_timeout_micros must not be negative, got {timeout}"
    allowed = list(parameters.allowed_batch_sizes)
    if allowed != sorted(set(allowed)) or any(size < 1 for size in allowed):
        yield f"allowed_batch_sizes must be positive and increasing, got {allowed}"
    if allowed and allowed[-1] != parameters.max_batch_size.value:
        yield (
            "the last of allowed_batch_sizes must equal max_batch_size, "
            f"got {allowed[-1]} and {parameters.max_batch_size.value}"
        )
    if allowed != list(settings.batch_sizes):
        yield (
            "allowed_batch_sizes must be those that the export warmed up and profiled, "
            f"{list(settings.batch_sizes)}, got {allowed}"
        )


def _monitoring(text: str, settings: ServerSettings) -> Iterator[str]:
    del settings
    prometheus = config_protos.monitoring_config(text).prometheus_config
    if not prometheus.enable:
        yield "prometheus_config must be enabled"
    if not prometheus.path.startswith("/"):
        yield f"path must start with '/', got {prometheus.path!r}"


def _environment(text: str, settings: ServerSettings) -> Iterator[str]:
    variables = environment(text)
    threads = variables.get(_THREADS, "")
    if not re.fullmatch("[0-9]{1,9}", threads) or int(threads) < settings.least_threads:
        yield (
            f"{_THREADS} must be {settings.least_threads} or more, two of the largest batch, "
            f"got {threads or 'none'}"
        )
    for name in (_INTRA_OP, _INTER_OP):
        if not re.fullmatch("[1-9][0-9]{0,8}", variables.get(name, "")):
            yield f"{name} must be 1 or more, got {variables.get(name, 'none')}"
    if settings.side_by_side and variables.get(_INTRA_OP) not in (None, "1"):
        yield (
            f"{_INTRA_OP} must be 1, the faster number of threads of an operation when the model "
            f"was profiled, got {variables[_INTRA_OP]}"
        )
    onednn = variables.get(ONEDNN_VARIABLE)
    if settings.onednn is not None and onednn != str(int(settings.onednn)):
        yield (
            f"{ONEDNN_VARIABLE} must be {int(settings.onednn)}, the faster setting when the "
            f"model was profiled, got {onednn or 'none'}"
        )
    elif onednn not in (None, "0", "1"):
        yield f"{ONEDNN_VARIABLE} must be 0 or 1, got {onednn}"
    known = (_THREADS, _INTRA_OP, _INTER_OP, ONEDNN_VARIABLE)
    if unknown := sorted(variables.keys() - set(known)):
        yield f"variables must be {' or '.join(known)}, got {', '.join(unknown)}"
