import gzip
import json
import shutil

import pytest
import tensorflow as tf

from hne_tf.bin import profile
from hne_tf.client.manifest import read_manifest
from hne_tf.errors import InputError
from hne_tf.evaluation import tables
from hne_tf.exported import latency as latencies
from hne_tf.exported import profile as profiles
from hne_tf.exported import tflite_file
from hne_tf.exported.manifest import MANIFEST

SIZES = (1, 2)


class Networks(tf.Module):
    """Two linear networks on images of 4 by 4."""

    def __init__(self):
        generator = tf.random.Generator.from_seed(1)
        self.kernels = [tf.Variable(generator.normal([16, 3])) for _ in SIZES]
        self.functions = {f"ensemble_{size}": self.ensemble(size) for size in SIZES}

    def ensemble(self, size):
        @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, 1], tf.uint8, name="images")])
        def predict(images):
            pixels = tf.reshape(tf.cast(images, tf.float32), [-1, 16])
            logits = tf.add_n([pixels @ kernel for kernel in self.kernels[:size]]) / size
            return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

        return predict


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A published version and a TFLite file with manifests, without latencies."""
    folder = tmp_path_factory.mktemp("originals")
    networks = Networks()
    version = folder / "tiny" / "3"
    tf.saved_model.save(networks, str(version), signatures=networks.functions)
    manifest = {
        "format": 1,
        "model": "tiny",
        "sizes": list(SIZES),
        "classes": ["a", "b", "c"],
        "input": {"name": "images", "dtype": "uint8", "shape": [None, 4, 4, 1]},
        "accuracy": {"split": "test", "examples": 8, "by_size": {"1": 0.625, "2": 0.875}},
        "more": "kept",
    }
    (version / MANIFEST).parent.mkdir()
    (version / MANIFEST).write_text(json.dumps(manifest))
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(version), signature_keys=list(networks.functions)
    )
    path = folder / "tiny_pruned.tflite"
    tflite_file.write(path, converter.convert(), {**manifest, "mode": "float32"})
    return folder


@pytest.fixture
def models(originals, tmp_path):
    """Copies that a test may change."""
    return shutil.copytree(originals, tmp_path / "models")


@pytest.fixture(scope="module")
def measured(originals, tmp_path_factory):
    """One run of the binary for the tests that only look: folder, page and output."""
    folder = shutil.copytree(originals, tmp_path_factory.mktemp("measured") / "models")
    page = folder / "results" / "mobile.md"
    with pytest.MonkeyPatch.context() as patch:
        # Machines differ; a server with all its cores has two here.
        patch.setattr(
            latencies, "default_threads", lambda path: 1 if path.suffix == ".tflite" else 2
        )
        code = profile.run(
            [
                f"--models={folder / 'tiny/3'},{folder / 'tiny_pruned.tflite'}",
                "--threads=1",
                "--batch_sizes=2",
                "--runs=3",
                f"--results={page}",
            ]
        )
    assert code == 0
    return folder, page


def test_a_version_is_published_again_with_its_measurements(measured, originals):
    folder, _ = measured
    assert sorted(path.name for path in (folder / "tiny").iterdir()) == ["3", "4"]
    before, after = folder / "tiny/3", folder / "tiny/4"
    for path in originals.glob("tiny/3/**/*"):
        if path.is_file():
            name = path.relative_to(originals / "tiny/3")
            assert (before / name).read_bytes() == path.read_bytes()
            if str(name) != MANIFEST:
                assert (after / name).read_bytes() == path.read_bytes()
    manifest = json.loads((after / MANIFEST).read_text())
    old = json.loads((before / MANIFEST).read_text())
    assert {key: manifest[key] for key in old} == old
    assert tf.saved_model.load(str(after)).signatures.keys() == {"ensemble_1", "ensemble_2"}


def test_servers_read_the_rows_of_all_cores(measured):
    folder, _ = measured
    manifest = json.loads((folder / "tiny/4" / MANIFEST).read_text())
    rows = {
        key: {
            (row["signature"], row["batch_size"]): row for row in manifest["latency"][key]
        }
        for key in ("measurements", "other_threads")
    }  # fmt: skip
    expected = {(f"ensemble_{size}", batch) for size in SIZES for batch in (1, 2)}
    for key, threads in (("measurements", 2), ("other_threads", 1)):
        assert rows[key].keys() == expected
        assert len(manifest["latency"][key]) == len(expected)
        for row in rows[key].values():
            assert row["threads"] == threads
            assert row["runs"] == 3
            assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
    assert read_manifest(folder / "tiny/4" / MANIFEST).latency_ms == {
        batch: {size: rows["measurements"][f"ensemble_{size}", batch]["p95_ms"] for size in SIZES}
        for batch in (1, 2)
    }


def test_a_file_gets_its_measurements_and_stays_the_same_model(measured, originals):
    folder, _ = measured
    path, original = folder / "tiny_pruned.tflite", originals / "tiny_pruned.tflite"
    assert tflite_file.read_flatbuffer(path) == tflite_file.read_flatbuffer(original)
    manifest, old = tflite_file.read_manifest(path), tflite_file.read_manifest(original)
    assert {key: manifest[key] for key in old} == old
    assert {row["threads"] for row in manifest["latency"]["measurements"]} == {1}
    assert manifest["latency"]["other_threads"] == []


def test_storage_is_that_of_graph_and_weights(measured):
    folder, _ = measured
    flatbuffer = tflite_file.read_flatbuffer(folder / "tiny_pruned.tflite")
    storage = tflite_file.read_manifest(folder / "tiny_pruned.tflite")["storage"]
    assert storage["bytes"] == len(flatbuffer)
    assert storage["gzip_bytes"] == len(gzip.compress(flatbuffer, 9))
    version = folder / "tiny/4"
    files = [version / "saved_model.pb", *sorted((version / "variables").iterdir())]
    content = b"".join(file.read_bytes() for file in files)
    assert json.loads((version / MANIFEST).read_text())["storage"] == {
        "bytes": len(content),
        "gzip_bytes": len(gzip.compress(content, 9)),
    }


def test_the_page_has_a_table_of_storage_and_one_of_latency(measured):
    folder, page = measured
    text = page.read_text()
    assert "hne-profile" in text
    assert "--threads=1" in text
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    storage, latency = rows[2:4], rows[6:]
    manifest = tflite_file.read_manifest(folder / "tiny_pruned.tflite")
    assert [row[:2] for row in storage] == [["tiny/3", "SavedModel"], ["tiny_pruned", "float32"]]
    plain, compressed = manifest["storage"]["bytes"], manifest["storage"]["gzip_bytes"]
    assert storage[1][2:] == [f"{plain:,}", "1.00", f"{compressed:,}", "1.00"]
    assert rows[4][:5] == ["model", "mode", "size", "accuracy", "batch"]
    assert rows[4][5:] == ["1 thread p50", "1 thread p95"]
    # One image, which clients need to know, is measured but was not asked for.
    assert len(latency) == 2 * 2
    row = manifest["latency"]["measurements"][-1]
    assert row["signature"] == "ensemble_2"
    last = ["tiny_pruned", "float32", "2", "87.50%", "2"]
    assert [*last, f"{row['p50_ms']:.2f}", f"{row['p95_ms']:.2f}"] in latency
    assert "](mobile.png)" in text
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_written_unless_it_is_to_be_kept(models, run_binary, monkeypatch):
    latency = {"hardware": {}, "other_threads": []} | {
        "measurements": [
            latencies._row(f"ensemble_{size}", 1, threads, [float(size)])
            for size in SIZES
            for threads in (1, 2)
        ]
    }
    monkeypatch.setattr(latencies, "measure_together", lambda *_: [latency, latency])
    before = {path: path.read_bytes() for path in models.rglob("*") if path.is_file()}
    code, lines, _ = run_binary(
        profile, f"--models={models / 'tiny/3'},{models / 'tiny_pruned.tflite'}", "--nopublish"
    )
    assert code == 0
    assert any("2 threads p95" in line for line in lines)
    assert {path: path.read_bytes() for path in models.rglob("*") if path.is_file()} == before


def test_what_is_no_model_is_refused(assert_refused, models, tmp_path):
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "empty").mkdir()
    for path, *words in (
        (tmp_path / "notes.txt", "version's folder or a .tflite file", "notes.txt"),
        (tmp_path / "none", "version's folder or a .tflite file"),
        (tmp_path / "empty", MANIFEST),
        (tmp_path / "none.tflite", "readable TFLite file"),
    ):
        assert_refused(profile, [f"--models={models / 'tiny/3'},{path}"], *words)
    assert_refused(profile, [], "models")
    assert_refused(profile, ["--models="], "models")
    twice = f"{models / 'tiny/3'},{models / 'tiny/../tiny/3'}"
    assert_refused(profile, [f"--models={twice}"], "different paths")


def test_a_file_that_was_cut_off_is_refused(assert_refused, models):
    path = models / "tiny_pruned.tflite"
    path.write_bytes(path.read_bytes()[:-100])
    assert_refused(profile, [f"--models={path}"], "tiny_pruned.tflite", "cut off")


def test_a_version_that_was_cut_off_is_refused_and_not_published(
    assert_refused, models, monkeypatch
):
    monkeypatch.setattr(latencies, "default_threads", lambda path: 1)
    graph = models / "tiny/3/saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:-1000])
    assert_refused(profile, [f"--models={models / 'tiny/3'}", "--threads=1"], "must load")
    assert [path.name for path in (models / "tiny").iterdir()] == ["3"]


def test_a_folder_that_is_no_version_can_only_be_measured(assert_refused, models):
    (models / "tiny/3").rename(models / "tiny/copy")
    assert_refused(profile, [f"--models={models / 'tiny/copy'}"], "a number", "copy")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "must be JSON"),
        ("[]", "format 1"),
        ('{"format": 2}', "format 1"),
        ('{"format": 1}', "accuracy"),
        ('{"format": 1, "sizes": [], "accuracy": {"by_size": {}}}', "ensemble size"),
        ('{"format": 1, "sizes": [1], "accuracy": {"by_size": {"2": 1}}}', "'1'"),
    ],
)
def test_a_manifest_that_does_not_tell_enough_is_refused(assert_refused, models, content, words):
    (models / "tiny/3" / MANIFEST).write_text(content)
    assert_refused(profile, [f"--models={models / 'tiny/3'}"], words)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--threads=0", "threads must be 1 or more, got 0"),
        ("--threads=1,two", "integers"),
        ("--threads=", "threads"),
        ("--runs=0", "runs must be 1 or more, got 0"),
        ("--batch_sizes=-1", "batch sizes must be 1 or more"),
    ],
)
def test_numbers_below_one_are_refused(assert_refused, models, flag, words):
    assert_refused(profile, [f"--models={models / 'tiny/3'}", flag], words)


def test_without_a_float32_file_there_are_no_ratios(models):
    manifest = {
        **json.loads((models / "tiny/3" / MANIFEST).read_text()),
        "storage": {"bytes": 2000, "gzip_bytes": 1000},
        "latency": {
            "measurements": [latencies._row(f"ensemble_{size}", 1, 1, [0.5]) for size in SIZES],
            "other_threads": [],
        },
    }
    text = tables.profiles_markdown([profiles.Profile(models / "tiny/3", manifest)], [1], [1])
    assert "| tiny/3 | SavedModel | 2,000 |          - |      1,000 |          - |" in text


def test_the_library_refuses_an_empty_list():
    with pytest.raises(InputError, match="models must be different paths"):
        profiles.profile([])
