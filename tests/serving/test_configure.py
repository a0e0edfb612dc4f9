"""TF Serving's configuration: written for an export, read back as TF Serving does, checked."""

import json
import pathlib

import pytest

from serving import config_protos, configure, server_config
from serving.server_config import BATCHING, ENVIRONMENT, MODELS, MONITORING, ServerSettings

_COMMITTED = pathlib.Path(server_config.__file__).parent / "config"
_SETTINGS = ServerSettings("digits", "/models/digits", (1, 4, 16))


@pytest.fixture
def export(tmp_path, manifest_content):
    """`models/digits` with a version whose manifest tells batch sizes 1 and 16."""
    extra = tmp_path / "models" / "digits" / "3" / "assets.extra"
    extra.mkdir(parents=True)
    (extra / "hne_manifest.json").write_text(json.dumps(manifest_content))
    return extra.parents[1]


def _findings(**changed):
    """What is found when a pattern in a file is replaced, by file name."""
    contents = server_config.files(_SETTINGS)
    for name, (old, new) in changed.items():
        file = {
            "models": MODELS,
            "batching": BATCHING,
            "monitoring": MONITORING,
            "server": ENVIRONMENT,
        }[name]
        assert old in contents[file]
        contents[file] = contents[file].replace(old, new)
    return list(server_config.differences(contents, _SETTINGS))


def test_files_are_read_back_as_written():
    contents = server_config.files(_SETTINGS)
    (model,) = config_protos.model_server_config(contents[MODELS]).model_config_list.config
    assert (model.name, model.base_path) == ("digits", "/models/digits")
    assert model.model_platform == "tensorflow"
    assert model.model_version_policy.latest.num_versions == 1
    batching = config_protos.batching_parameters(contents[BATCHING])
    assert list(batching.allowed_batch_sizes) == [1, 4, 16]
    assert batching.max_batch_size.value == 16
    assert batching.batch_timeout_micros.value == 1000
    prometheus = config_protos.monitoring_config(contents[MONITORING]).prometheus_config
    assert (prometheus.enable, prometheus.path) == (True, "/monitoring/prometheus/metrics")
    assert _findings() == []


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"models": ('"digits"', '"letters"')}, "named 'digits', got ['letters']"),
        ({"models": ('"/models/digits"', '"models/digits"')}, "must be absolute"),
        ({"models": ('"/models/digits"', '"/srv/digits"')}, "must be '/models/digits', got '/srv"),
        ({"models": ('platform: "tensorflow"', 'platform: "torch"')}, "got 'torch'"),
        ({"models": ("base_path", "folder")}, 'has no field named "folder"'),
        ({"batching": ("num_batch_threads", "threads")}, 'has no field named "threads"'),
        ({"batching": ("{ value: 16 }", "16")}, "BatchingParameters in text form"),
        ({"batching": ("value: 1000", 'value: "1 ms"')}, "BatchingParameters in text form"),
        ({"batching": ("max_batch_size { value: 16", "max_batch_size { value: 32")}, "16 and 32"),
        ({"batching": ("sizes: 4", "sizes: 40")}, "must be positive and increasing, got [1, 40"),
        ({"batching": ("sizes: 4", "sizes: 8")}, "profiled, [1, 4, 16], got [1, 8, 16]"),
        ({"batching": ("num_batch_threads { value: 2", "num_batch_threads { value: 0")}, "got 0"),
        ({"batching": ("{ value: 1000", "{ value: -1")}, "must not be negative, got -1"),
        ({"monitoring": ("enable: true", "enable: false")}, "must be enabled"),
        ({"monitoring": ('"/monitoring', '"monitoring')}, "must start with '/'"),
        ({"monitoring": ("enable: true", "enable: 7")}, "MonitoringConfig in text form"),
        ({"server": ("=64", "=31")}, "must be 32 or more, two of the largest batch, got 31"),
        ({"server": ("=64", "=²")}, "must set a variable, each once, got 'GRPC_MAX_THREADS=²'"),
        ({"server": ("=64", "=" + "9" * 5000)}, "must be 32 or more, two of the largest batch"),
        ({"server": ("=64", "=many")}, "must be 32 or more, two of the largest batch, got many"),
        ({"server": ("GRPC_MAX_THREADS=64", "")}, "must be 32 or more, two of the largest"),
        ({"server": ("GRPC_MAX", "MAX")}, "OPTS, got MAX_THREADS"),
        ({"server": ("=64", "=64\nTF_ENABLE_ONEDNN_OPTS=on")}, "must be 0 or 1, got on"),
        ({"server": ("=64", "=64\nGRPC_MAX_THREADS=64")}, "each once, got 'GRPC_MAX_THREADS=64'"),
        ({"server": ("INTRA_OP_PARALLELISM=2", "INTRA_OP_PARALLELISM=0")}, "1 or more, got 0"),
        ({"server": ("INTER_OP_PARALLELISM=2", "")}, "INTER_OP_PARALLELISM must be 1 or more"),
    ],
)
def test_what_tf_serving_would_refuse_or_the_export_does_not_fit_is_found(changed, finding):
    found = _findings(**changed)
    assert any(finding in line for line in found), found
    (name,) = changed
    assert all(line.startswith(name) for line in found)


def test_tuning_is_free():
    assert _findings(batching=("{ value: 1000 }", "{ value: 5000 }")) == []
    assert _findings(server=("=64", "=32")) == []
    assert _findings(server=("=64", "=64\nTF_ENABLE_ONEDNN_OPTS=1")) == []


@pytest.mark.parametrize("onednn", [True, False])
def test_the_server_computes_with_what_the_profile_found_faster(
    tmp_path, manifest_content, run_binary, assert_refused, onednn
):
    manifest_content["latency"]["onednn"] = onednn
    manifest, output = tmp_path / "manifest.json", tmp_path / "config"
    manifest.write_text(json.dumps(manifest_content))
    flags = [f"--export={manifest}", f"--output={output}", f"--configmap={tmp_path / 'map.yaml'}"]
    assert run_binary(configure, *flags)[0] == 0
    value = str(int(onednn))
    written = (output / ENVIRONMENT).read_text()
    assert server_config.environment(written)["TF_ENABLE_ONEDNN_OPTS"] == value
    assert f'  TF_ENABLE_ONEDNN_OPTS: "{value}"\n' in (tmp_path / "map.yaml").read_text()
    assert run_binary(configure, *flags, "--check")[0] == 0
    # One that is found otherwise, and one that was never told.
    for other in (written.replace(f"OPTS={value}", f"OPTS={1 - onednn}"), written.split("# W")[0]):
        (output / ENVIRONMENT).write_text(other)
        assert_refused(configure, [*flags, "--check"], f"TF_ENABLE_ONEDNN_OPTS must be {value}")


@pytest.mark.parametrize(
    ("batch_sizes", "settings", "threads"),
    [
        ((1,), {}, 64),
        ((1, 16), {}, 64),
        ((1, 32), {}, 128),
        ((1, 32), {"num_batch_threads": 8}, 512),
        ((1, 32), {"grpc_max_threads": 100}, 100),
    ],
)
def test_threads_hold_two_largest_batches_for_each_batch_thread(batch_sizes, settings, threads):
    made = ServerSettings("digits", "/models/digits", batch_sizes, **settings)
    cores = str(made.num_batch_threads)
    assert server_config.environment(server_config.files(made)[ENVIRONMENT]) == {
        "GRPC_MAX_THREADS": str(threads),
        "INTRA_OP_PARALLELISM": cores,
        "INTER_OP_PARALLELISM": cores,
    }


def test_an_operation_gets_the_threads_that_the_profile_found_faster(
    tmp_path, manifest_content, run_binary, assert_refused
):
    for row in manifest_content["latency"]["measurements"]:
        row["side_by_side"] = True
    manifest, output = tmp_path / "manifest.json", tmp_path / "config"
    manifest.write_text(json.dumps(manifest_content))
    flags = [f"--export={manifest}", f"--output={output}", "--num_batch_threads=8"]
    assert run_binary(configure, *flags)[0] == 0
    written = (output / ENVIRONMENT).read_text()
    variables = server_config.environment(written)
    assert (variables["INTRA_OP_PARALLELISM"], variables["INTER_OP_PARALLELISM"]) == ("1", "8")
    (output / ENVIRONMENT).write_text(
        written.replace("INTRA_OP_PARALLELISM=1", "INTRA_OP_PARALLELISM=8")
    )
    assert_refused(configure, [*flags, "--check"], "INTRA_OP_PARALLELISM must be 1", "got 8")


def test_threads_that_no_batch_would_fill_are_refused(export, tmp_path, assert_refused):
    # The four per core that TF Serving takes by itself, on two cores.
    flags = [f"--export={export}", f"--output={tmp_path / 'config'}", "--grpc_max_threads=8"]
    assert_refused(configure, flags, "GRPC_MAX_THREADS must be 32 or more", "got 8")
    assert not (tmp_path / "config").exists()


def test_the_newest_version_and_a_given_one_make_the_same_files(export, tmp_path, run_binary):
    for number, path in enumerate((export, export / "3")):
        output = tmp_path / f"config{number}"
        code, lines, _ = run_binary(
            configure, f"--export={path}", f"--output={output}", "--num_batch_threads=8"
        )
        assert code == 0
        assert lines == [f"written {output} for digits: batch sizes 1, 16"]
        expected = ServerSettings("digits", "/models/digits", (1, 16), num_batch_threads=8)
        written = {path.name: path.read_text() for path in output.iterdir()}
        assert written == server_config.files(expected)


def test_check_says_what_differs_and_writes_nothing(export, tmp_path, run_binary, assert_refused):
    output, configmap = tmp_path / "config", tmp_path / "configmap.yaml"
    flags = [f"--export={export}", f"--output={output}", f"--configmap={configmap}"]
    assert run_binary(configure, *flags)[0] == 0
    assert run_binary(configure, *flags, "--check")[:2] == (
        0,
        [f"{output} fits digits: batch sizes 1, 16"],
    )
    batching = (output / BATCHING).read_text().replace("sizes: 16", "sizes: 8")
    (output / BATCHING).write_text(batching)
    (output / MONITORING).unlink()
    words = [
        f"{BATCHING}: the last of allowed_batch_sizes",
        f"{BATCHING}: allowed_batch_sizes must be those that the export",
        f"{MONITORING} is missing",
        f"{configmap} must hold",
    ]
    assert_refused(configure, [*flags, "--check"], *words)
    assert (output / BATCHING).read_text() == batching
    assert not (output / MONITORING).exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--export"),
        (["--export=absent", "--output=x"], "absent"),
        (["--export=.", "--output=x", "--num_batch_threads=0"], "num_batch_threads"),
        (["--export=.", "--output=x", "extra"], "extra"),
    ],
)
def test_bad_flags_get_one_line(assert_refused, arguments, word):
    assert_refused(configure, arguments, word)


def test_a_relative_base_path_is_refused_before_anything_is_written(
    export, tmp_path, assert_refused
):
    output = tmp_path / "config"
    flags = [f"--export={export}", f"--output={output}", "--model_base_path=models/digits"]
    assert_refused(configure, flags, "must be absolute")
    assert not output.exists()


def test_sizes_profiled_at_different_batches_are_refused(
    tmp_path, manifest_content, assert_refused
):
    manifest_content["latency"]["measurements"].pop()
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest_content))
    flags = [f"--export={path}", f"--output={tmp_path / 'config'}"]
    assert_refused(configure, flags, "same batch sizes", "'ensemble_4': [1]")


def test_the_committed_files_are_what_configure_writes_for_the_digits():
    """As docs/production.md exports and profiles them, where they are slower with oneDNN."""
    settings = ServerSettings("digits", "/models/digits", (1, 2, 4, 8, 16, 32), onednn=False)
    written = {path.name: path.read_text() for path in _COMMITTED.iterdir()}
    assert written == server_config.files(settings)
