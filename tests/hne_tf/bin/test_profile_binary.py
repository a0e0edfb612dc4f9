import dataclasses
import gzip
import shutil

import pytest
import tensorflow as tf

from hne_tf.bin import profile
from hne_tf.errors import InputError
from hne_tf.evaluation import tables
from hne_tf.exported import tflite_file
from hne_tf.exported.manifest import Manifest, read_manifest
from hne_tf.exported.measurements import Accuracy, MeasuredLatency, Measurement, Storage
from hne_tf.exported.model import load
from hne_tf.exported.profiling import latency as latencies
from hne_tf.exported.profiling import profile as profiles
from hne_tf.exported.profiling.profile import ProfiledModel
from hne_tf.exported.saved_model import SavedModel
from hne_tf.exported.versions import LITERT, MANIFEST
from hne_tf.tree import Tree

pytestmark = pytest.mark.slow

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
    manifest = Manifest.of_tree(
        Tree((1, 2)),
        "tiny",
        ("a", "b", "c"),
        (4, 4, 1),
        accuracy=Accuracy("test", 8, {1: 0.625, 2: 0.875}),
        record={"more": "kept"},
    )
    (version / MANIFEST).parent.mkdir()
    (version / MANIFEST).write_text(manifest.to_text())
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(version), signature_keys=list(networks.functions)
    )
    path = folder / "tiny_pruned.tflite"
    tflite_file.write(path, converter.convert(), dataclasses.replace(manifest, mode="float32"))
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
        patch.setattr(SavedModel, "default_threads", 2)
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
    manifest, old = read_manifest(after), read_manifest(before)
    assert dataclasses.replace(manifest, latency=None, storage=None) == old
    assert tf.saved_model.load(str(after)).signatures.keys() == {"ensemble_1", "ensemble_2"}


def test_servers_read_the_rows_of_all_cores(measured):
    folder, _ = measured
    manifest = read_manifest(folder / "tiny/4")
    expected = {(f"ensemble_{size}", batch) for size in SIZES for batch in (1, 2)}
    latency = manifest.latency
    # TensorFlow was measured with all cores in both ways to use them.
    slower_way = [row for row in latency.other_threads if row.threads == 2]
    assert {row.side_by_side for row in slower_way} == {not latency.side_by_side}
    fewer = [row for row in latency.other_threads if row.threads == 1]
    for rows, threads in ((latency.measurements, 2), (slower_way, 2), (fewer, 1)):
        assert {(row.signature, row.batch_size) for row in rows} == expected
        assert len(rows) == len(expected)
        for row in rows:
            assert row.threads == threads
            assert row.runs == 3
            assert 0 < row.p50_ms <= row.p95_ms <= row.p99_ms
    assert latency.onednn in (True, False)
    assert {(row.signature, row.batch_size, row.threads) for row in latency.other_onednn} == {
        (*key, threads) for key in expected for threads in (1, 2)
    }
    assert manifest.latency_ms == {
        batch: {size: manifest.measurement(size, batch, threads=2).p95_ms for size in SIZES}
        for batch in (1, 2)
    }
    assert manifest.batch_sizes == (1, 2)


def test_a_file_gets_its_measurements_and_stays_the_same_model(measured, originals):
    folder, _ = measured
    path, original = folder / "tiny_pruned.tflite", originals / "tiny_pruned.tflite"
    assert tflite_file.read_flatbuffer(path) == tflite_file.read_flatbuffer(original)
    manifest, old = tflite_file.read_manifest(path), tflite_file.read_manifest(original)
    assert dataclasses.replace(manifest, latency=None, storage=None) == old
    assert {row.threads for row in manifest.latency.measurements} == {1}
    assert manifest.latency.other_threads == manifest.latency.other_onednn == ()
    assert manifest.latency.onednn is None


def test_storage_is_that_of_graph_and_weights(measured):
    folder, _ = measured
    flatbuffer = tflite_file.read_flatbuffer(folder / "tiny_pruned.tflite")
    storage = tflite_file.read_manifest(folder / "tiny_pruned.tflite").storage
    assert storage == Storage(len(flatbuffer), len(gzip.compress(flatbuffer, 9)))
    version = folder / "tiny/4"
    files = [version / "saved_model.pb", *sorted((version / "variables").iterdir())]
    content = b"".join(file.read_bytes() for file in files)
    expected = Storage(len(content), len(gzip.compress(content, 9)))
    assert read_manifest(version).storage == expected


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
    plain, compressed = manifest.storage.bytes, manifest.storage.gzip_bytes
    assert storage[1][2:] == [f"{plain:,}", "1.00", f"{compressed:,}", "1.00"]
    assert rows[4][:5] == ["model", "mode", "size", "accuracy", "batch"]
    assert rows[4][5:] == ["oneDNN", "operation", "1 thread p50", "1 thread p95"]
    # One image, which clients need to know, is measured but was not asked for. The version
    # has rows with oneDNN and without.
    assert [row[5] for row in latency] == ["on", "off"] * 2 + ["-"] * 2
    onednn = read_manifest(folder / "tiny/4").latency.onednn
    assert f"tiny/3 is faster {'with' if onednn else 'without'} oneDNN" in text
    row = manifest.latency.measurements[-1]
    assert row.signature == "ensemble_2"
    last = ["tiny_pruned", "float32", "2", "87.50%", "2", "-", "all"]
    assert [*last, f"{row.p50_ms:.2f}", f"{row.p95_ms:.2f}"] in latency
    assert "](mobile.png)" in text
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_written_unless_it_is_to_be_kept(models, run_binary, monkeypatch):
    rows = tuple(
        Measurement(f"ensemble_{size}", 1, 1, 1.0, 2.0, 3.0, threads)
        for size in SIZES
        for threads in (1, 2)
    )
    measured = MeasuredLatency({}, rows)
    monkeypatch.setattr(latencies, "measure_together", lambda *_: [measured, measured])
    before = {path: path.read_bytes() for path in models.rglob("*") if path.is_file()}
    code, lines, _ = run_binary(
        profile, f"--models={models / 'tiny/3'},{models / 'tiny_pruned.tflite'}", "--nopublish"
    )
    assert code == 0
    assert any("2 threads p95" in line for line in lines)
    assert {path: path.read_bytes() for path in models.rglob("*") if path.is_file()} == before


def test_the_file_in_a_version_is_measured_beside_it(originals, models, run_binary, monkeypatch):
    version = models / "tiny/3"
    manifest = dataclasses.replace(read_manifest(version), mode="float32")
    flatbuffer = tflite_file.read_flatbuffer(originals / "tiny_pruned.tflite")
    tflite_file.write(version / LITERT, flatbuffer, manifest)

    def rows(milliseconds, threads, side_by_side=False):
        return tuple(
            Measurement(f"ensemble_{size}", 1, 1, *[milliseconds] * 3, threads, side_by_side)
            for size in SIZES
        )

    with_onednn = rows(8.0, 2, True) + rows(9.0, 2) + rows(10.0, 1)
    of_tensorflow = MeasuredLatency(
        {}, rows(4.0, 2, True), rows(5.0, 2) + rows(6.0, 1), False, with_onednn
    )
    of_litert = MeasuredLatency({}, rows(2.0, 1), rows(1.0, 2))
    monkeypatch.setattr(SavedModel, "default_threads", 2)
    monkeypatch.setattr(latencies, "measure_together", lambda *_: [of_tensorflow, of_litert])
    code, lines, _ = run_binary(profile, f"--models={version}", "--threads=1,2")
    assert code == 0
    table = [" ".join(line.split()) for line in lines]
    name = "| tiny/3 | SavedModel | 2 | 87.50% | 1 | off |"
    assert f"{name} all | 6.00 | 6.00 | 5.00 | 5.00 |" in table
    assert f"{name} 1 thread | - | - | 4.00 | 4.00 |" in table
    name = "| tiny/3 by LiteRT | float32 | 2 | 87.50% | 1 | - |"
    assert f"{name} all | 2.00 | 2.00 | 1.00 | 1.00 |" in table
    assert "tiny/3 is faster without oneDNN and with one thread for each operation." in table
    assert (
        "LiteRT computes tiny/3 best by 2 threads a call: 0.25 times what TensorFlow takes."
        in table
    )
    kept = read_manifest(models / "tiny/4")
    assert (kept.latency, kept.litert.latency) == (of_tensorflow, of_litert)
    assert kept.litert.threads == 2
    assert kept.litert_is_faster


def test_what_is_no_model_is_refused(assert_refused, models, tmp_path):
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "empty").mkdir()
    for path, *words in (
        (tmp_path / "notes.txt", "must be a TFLite file", "notes.txt"),
        (tmp_path / "none", "version's folder, a folder of versions or a TFLite file"),
        (tmp_path / "empty", MANIFEST),
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
    monkeypatch.setattr(SavedModel, "default_threads", 1)
    graph = models / "tiny/3/saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:-1000])
    assert_refused(profile, [f"--models={models / 'tiny/3'}", "--threads=1"], "must load")
    assert [path.name for path in (models / "tiny").iterdir()] == ["3"]


def test_a_folder_that_is_no_version_can_only_be_measured(assert_refused, models):
    (models / "tiny/3").rename(models / "tiny/copy")
    assert_refused(profile, [f"--models={models / 'tiny/copy'}"], "a number", "copy")


def test_a_manifest_that_is_damaged_is_refused(assert_refused, models):
    (models / "tiny/3" / MANIFEST).write_text('{"format": 1}')
    assert_refused(profile, [f"--models={models / 'tiny/3'}"], "must have the key 'model'")


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


def test_without_a_float32_file_there_are_no_ratios_and_without_data_no_accuracy(models):
    rows = tuple(Measurement(f"ensemble_{size}", 1, 1, 0.5, 0.6, 0.7, 1) for size in SIZES)
    exported = load(models / "tiny")
    manifest = dataclasses.replace(
        exported.manifest,
        accuracy=None,
        storage=Storage(2000, 1000),
        latency=MeasuredLatency({}, rows),
    )
    text = tables.profiles_markdown([ProfiledModel(exported, manifest)], [1], [1])
    assert "| tiny/3 | SavedModel | 2,000 |          - |      1,000 |          - |" in text
    line = (
        "| tiny/3 | SavedModel |    2 |        - |     1 | -      | all       "
        "|         0.50 |         0.60 |"
    )
    assert line in text


def test_the_library_refuses_an_empty_list():
    with pytest.raises(InputError, match="models must be different paths"):
        profiles.profile([])
