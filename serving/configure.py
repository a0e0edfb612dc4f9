"""Writes TF Serving's configuration files for an export, or checks those there are.

  python -m serving.configure --export=models/digits --output=serving/config
  python -m serving.configure --export=models/digits --output=serving/config --check

The batch sizes that the export warmed up and profiled become the server's, and of oneDNN
and of the threads of an operation the setting that hne-profile found faster.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from hne_tf.bin import app
from hne_tf.errors import InputError
from hne_tf.exported.manifest import read_manifest
from hne_tf.files import write_text


def define_flags(values: flags.FlagValues, arguments: list[str]) -> None:
    """Adds the flags of this binary to `values`."""
    del arguments
    app.define_path(
        values,
        "export",
        None,
        "A published version, or the folder of a model's versions for the newest.",
    )
    app.define_path(values, "output", None, "Folder of the configuration files.")
    app.define_path(
        values, "configmap", None, "Also this Kubernetes ConfigMap (YAML) with the same files."
    )
    flags.DEFINE_bool(
        "check", False, "Write nothing; say what in the files does not fit.", flag_values=values
    )
    flags.DEFINE_string(
        "model_base_path",
        None,
        "Folder of the model's versions where TF Serving runs; /models/<name> by default.",
        flag_values=values,
    )
    for name, default, text in (
        ("batch_timeout_micros", 1000, "Longest wait of a request for others in its batch."),
        ("max_enqueued_batches", 16, "Batches that wait per signature before requests fail."),
        ("num_batch_threads", 2, "Batches computed at once: the cores of the server."),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "grpc_max_threads",
        None,
        "Requests that TF Serving holds at once; by default two largest batches for each of "
        "--num_batch_threads, and 64 or more.",
        lower_bound=1,
        flag_values=values,
    )
    flags.mark_flags_as_required(["export", "output"], values)


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Writes or checks the files."""
    app.reject_positional(arguments)
    with app.quiet_import():
        from serving import server_config

    manifest = read_manifest(values.export)
    model, batch_sizes = manifest.model, manifest.batch_sizes
    settings = server_config.ServerSettings(
        model,
        values.model_base_path or f"/models/{model}",
        batch_sizes,
        batch_timeout_micros=values.batch_timeout_micros,
        max_enqueued_batches=values.max_enqueued_batches,
        num_batch_threads=values.num_batch_threads,
        grpc_max_threads=values.grpc_max_threads,
        onednn=manifest.latency.onednn,
        side_by_side=manifest.latency.side_by_side,
    )
    output = pathlib.Path(values.output)
    configmap = pathlib.Path(values.configmap) if values.configmap else None
    contents = server_config.files(settings)
    # Whatever was asked for must itself keep the rules.
    _refuse(list(server_config.differences(contents, settings)))
    if values.check:
        present = {name: _read(output / name) for name in contents if (output / name).exists()}
        found = list(server_config.differences(present, settings))
        if configmap and _read(configmap) != server_config.config_map(present):
            found.append(f"{configmap} must hold the files of {output}, got others")
        _refuse(found)
        print(f"{output} fits {model}: batch sizes {', '.join(map(str, batch_sizes))}")
        return
    _write(output, contents)
    if configmap:
        _write(configmap.parent, {configmap.name: server_config.config_map(contents)})
    print(f"written {output} for {model}: batch sizes {', '.join(map(str, batch_sizes))}")
    if batch_sizes[-1] == 1:
        print("batches of 1 share nothing; hne-export --batch_sizes=1,2,4,8 warms up more")


def _refuse(found: list[str]) -> None:
    if found:
        raise InputError(f"configuration must fit the export, got {'; '.join(found)}")


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"configuration must be a readable file, got {path}: {error}") from error


def _write(folder: pathlib.Path, contents: dict[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            write_text(folder / name, text)
    except OSError as error:
        raise InputError(f"configuration must go into a folder, got {folder}: {error}") from error


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the binary; returns its exit code."""
    return app.run("configure", define_flags, main, argv)


if __name__ == "__main__":
    sys.exit(run())
