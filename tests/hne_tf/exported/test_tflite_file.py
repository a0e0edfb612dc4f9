import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given
from hypothesis import strategies as st

from hne_tf.errors import InputError
from hne_tf.exported import manifest as manifests
from hne_tf.exported import tflite_file
from hne_tf.exported.manifest import MOST_BYTES, Manifest
from hne_tf.tree import Tree

MANIFEST = Manifest.of_tree(Tree((1, 2)), "mine", ("ant", "bee"), (6, 4, 2))
FLATBUFFER = b"\x1c\x00\x00\x00TFL3" + bytes(range(256)) * 2


def whole():
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        tflite_file.write(path, FLATBUFFER, MANIFEST)
        return path.read_bytes()


WHOLE = whole()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.tflite"
    tflite_file.write(path, FLATBUFFER, MANIFEST)
    return path


def assert_refused(path, *words):
    for function in (tflite_file.read_manifest, tflite_file.read_flatbuffer):
        with pytest.raises(InputError) as refusal:
            function(path)
        for word in (str(path), *words):
            assert word in str(refusal.value)
        assert "\n" not in str(refusal.value)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(InputError):
        tflite_file.write_manifest(path, MANIFEST)
    assert before is None or path.read_bytes() == before


def rewrite_archive(path, entry, text):
    """The file with another archive behind its model."""
    path.write_bytes(FLATBUFFER)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, text)


def test_what_is_written_is_read(path):
    manifest = tflite_file.read_manifest(path)
    assert dataclasses.replace(manifest, flatbuffer=None) == MANIFEST
    assert manifest.flatbuffer.bytes == len(FLATBUFFER)
    assert tflite_file.read_flatbuffer(path) == FLATBUFFER
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_any_zip_reader_finds_the_manifest_behind_the_model(path):
    assert path.read_bytes().startswith(FLATBUFFER)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert json.loads(archive.read("hne_manifest.json"))["model"] == "mine"


def test_equal_models_give_equal_files(path):
    before = path.read_bytes()
    tflite_file.write(path, FLATBUFFER, MANIFEST)
    assert path.read_bytes() == before


def test_a_manifest_is_replaced_again_and_again_and_the_file_does_not_grow(path):
    before = path.read_bytes()
    for value in ("first", "again"):
        tflite_file.write_manifest(path, dataclasses.replace(MANIFEST, model=value))
        assert tflite_file.read_manifest(path).model == value
        assert tflite_file.read_flatbuffer(path) == FLATBUFFER
    tflite_file.write_manifest(path, MANIFEST)
    assert path.read_bytes() == before


def test_a_cut_anywhere_is_noticed(path):
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"must be"):
            tflite_file.read_manifest(path)


def test_a_part_lost_anywhere_is_noticed(path):
    whole = path.read_bytes()
    for start in range(len(whole)):
        path.write_bytes(whole[:start] + whole[start + 7 :])
        with pytest.raises(InputError, match=r"must be"):
            tflite_file.read_manifest(path)


def test_a_changed_model_is_noticed(path):
    whole = bytearray(path.read_bytes())
    whole[100] ^= 1
    path.write_bytes(whole)
    assert_refused(path, "damaged")


def test_a_changed_byte_ends_in_an_error_or_in_the_same_manifest(path):
    whole, manifest = path.read_bytes(), tflite_file.read_manifest(path)
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 0x55
        path.write_bytes(changed)
        # A date in the archive, for instance, does not matter.
        with contextlib.suppress(InputError):
            assert tflite_file.read_manifest(path) == manifest


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["must be a TFLite file"]),
        (b"not a model at all", ["must be a TFLite file"]),
        (FLATBUFFER, ["hne-convert-tflite", "another model's, or cut off"]),
    ],
    ids=["empty", "other", "plain TFLite"],
)
def test_other_files_are_refused(tmp_path, content, words):
    path = tmp_path / "other.tflite"
    path.write_bytes(content)
    assert_refused(path, *words)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert_refused(tmp_path / "missing.tflite", "readable", "No such file")
    assert_refused(tmp_path, "readable", "directory")


def test_pipes_and_devices_are_refused_unread(tmp_path):
    os.mkfifo(tmp_path / "pipe.tflite")
    for path in (tmp_path / "pipe.tflite", "/dev/zero"):
        with pytest.raises(InputError, match="a pipe or a device"):
            tflite_file.read_manifest(path)


@pytest.mark.parametrize(
    ("entry", "text", "words"),
    [
        ("labels.txt", "ant", ["without hne_manifest.json"]),
        ("hne_manifest.json", '{"format": ', ["must be JSON"]),
        ("hne_manifest.json", b"\xff\xfe\xff", ["must be JSON"]),
        ("hne_manifest.json", "[1]", ["format 1", "[1]"]),
        ("hne_manifest.json", "{}", ["format 1", "None"]),
        ("hne_manifest.json", '{"format": 1}', ["must have the key 'model'"]),
        ("hne_manifest.json", MANIFEST.to_text(), ["damaged"]),
    ],
)
def test_other_archives_are_refused(path, entry, text, words):
    rewrite_archive(path, entry, text)
    assert_refused(path, *words)


def peak_of(call):
    """Bytes of Python's memory that a call takes at most."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_manifest_that_unpacks_to_any_size_is_refused_in_little_memory(path):
    entry = zipfile.ZipInfo("hne_manifest.json")
    entry.compress_type = zipfile.ZIP_DEFLATED
    rewrite_archive(path, entry, b" " * (128 * 2**20))
    assert path.stat().st_size < 2**20
    peak = peak_of(lambda: assert_refused(path, f"at most {MOST_BYTES} bytes, got more"))
    assert peak < 6 * MOST_BYTES


def test_an_entry_of_another_compression_is_refused(path):
    entry = zipfile.ZipInfo("hne_manifest.json")
    # A few bytes of it can unpack to a hundred megabytes at once.
    entry.compress_type = zipfile.ZIP_BZIP2
    rewrite_archive(path, entry, MANIFEST.to_text())
    assert_refused(path, "hne-convert-tflite")


def test_a_file_of_a_manifest_is_read_to_the_bound(tmp_path):
    path = tmp_path / "hne_manifest.json"
    with path.open("wb") as file:
        file.truncate(2**30)

    def read():
        with pytest.raises(InputError, match="at most 8388608 bytes, got more"):
            manifests.read_manifest(path)

    assert peak_of(read) < 6 * MOST_BYTES


def test_no_manifest_is_written_that_readers_refuse(tmp_path):
    long = dataclasses.replace(MANIFEST, record={"note": "x" * MOST_BYTES})
    with pytest.raises(InputError, match="a manifest must have at most 8388608 bytes, got 8"):
        tflite_file.write(tmp_path / "model.tflite", FLATBUFFER, long)
    assert not list(tmp_path.iterdir())


def test_only_a_tflite_model_is_written(tmp_path):
    with pytest.raises(InputError, match="TFL3"):
        tflite_file.write(tmp_path / "model.tflite", b"PK", MANIFEST)
    assert not list(tmp_path.iterdir())


def test_interpreters_load_the_file(tmp_path):
    function = tf.function(lambda x: 2 * x, input_signature=[tf.TensorSpec([3], tf.float32)])
    concrete = function.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], function)
    path = tmp_path / "double.tflite"
    tflite_file.write(path, converter.convert(), MANIFEST)
    for loaded in (Interpreter(str(path)), Interpreter(model_content=path.read_bytes())):
        loaded.allocate_tensors()
        loaded.set_tensor(loaded.get_input_details()[0]["index"], np.float32([1, 2, 3]))
        loaded.invoke()
        answer = loaded.get_tensor(loaded.get_output_details()[0]["index"])
        np.testing.assert_array_equal(answer, [2, 4, 6])


def test_tensorflow_is_not_needed(path):
    program = (
        "import sys; from hne_tf.exported import tflite_file; "
        f"tflite_file.read_manifest({str(path)!r}); "
        "sys.exit('tensorflow' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@given(st.data())
def test_changed_bytes_give_the_same_manifest_or_a_line(bounded, data):
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = start + data.draw(st.integers(0, 40))
        content[start:end] = data.draw(st.binary(max_size=40))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        path.write_bytes(content)
        try:
            with bounded():
                manifest = tflite_file.read_manifest(path)
        except InputError as error:
            message = str(error)
        else:
            # What the archive says of itself, such as a date, does not matter.
            assert dataclasses.replace(manifest, flatbuffer=None) == MANIFEST
            return
    assert "\n" not in message
    assert message.encode()
