import contextlib
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from hne_tf.errors import InputError
from hne_tf.exported import manifest as savedmodel_manifest
from hne_tf.exported import tflite_file

FLATBUFFER = b"\x1c\x00\x00\x00TFL3" + bytes(range(256)) * 2


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.tflite"
    tflite_file.write(path, FLATBUFFER, {"model": "mine", "steps": [1, 2]})
    return path


def assert_refused(path, *words):
    for function in (tflite_file.read_manifest, tflite_file.check, tflite_file.read_flatbuffer):
        with pytest.raises(InputError) as refusal:
            function(path)
        for word in (str(path), *words):
            assert word in str(refusal.value)
        assert "\n" not in str(refusal.value)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(InputError):
        tflite_file.write_manifest(path, {})
    assert before is None or path.read_bytes() == before


def rewrite_archive(path, entry, text):
    """The file with another archive behind its model."""
    path.write_bytes(FLATBUFFER)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, text)


def test_what_is_written_is_read(path):
    manifest = tflite_file.read_manifest(path)
    assert manifest["model"] == "mine"
    assert manifest["steps"] == [1, 2]
    assert manifest["flatbuffer"]["bytes"] == len(FLATBUFFER)
    assert tflite_file.read_flatbuffer(path) == FLATBUFFER
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_any_zip_reader_finds_the_manifest_behind_the_model(path):
    assert path.read_bytes().startswith(FLATBUFFER)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert json.loads(archive.read("hne_manifest.json"))["model"] == "mine"


def test_equal_models_give_equal_files(path):
    before = path.read_bytes()
    tflite_file.write(path, FLATBUFFER, {"model": "mine", "steps": [1, 2]})
    assert path.read_bytes() == before


def test_a_manifest_is_replaced_again_and_again_and_the_file_does_not_grow(path):
    before = path.read_bytes()
    for value in ("first", "again"):
        tflite_file.write_manifest(path, tflite_file.read_manifest(path) | {"model": value})
        assert tflite_file.read_manifest(path)["model"] == value
        assert tflite_file.read_flatbuffer(path) == FLATBUFFER
    tflite_file.write_manifest(path, tflite_file.read_manifest(path) | {"model": "mine"})
    assert path.read_bytes() == before


def test_the_format_is_that_of_a_saved_model(path):
    assert tflite_file.read_manifest(path)["format"] == savedmodel_manifest.FORMAT


def test_a_cut_anywhere_is_noticed(path):
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"must be"):
            tflite_file.check(path)


def test_a_part_lost_anywhere_is_noticed(path):
    whole = path.read_bytes()
    for start in range(len(whole)):
        path.write_bytes(whole[:start] + whole[start + 7 :])
        with pytest.raises(InputError, match=r"must be"):
            tflite_file.check(path)


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


@pytest.mark.parametrize(
    ("entry", "text", "words"),
    [
        ("labels.txt", "ant", ["without hne_manifest.json"]),
        ("hne_manifest.json", '{"format": ', ["must be JSON"]),
        ("hne_manifest.json", b"\xff\xfe\xff", ["must be JSON"]),
        ("hne_manifest.json", "[1]", ["JSON object", "[1]"]),
        ("hne_manifest.json", "1", ["JSON object"]),
        ("hne_manifest.json", "{}", ["format 1", "None"]),
        ("hne_manifest.json", '{"format": 2}', ["format 1", "2"]),
        ("hne_manifest.json", '{"format": 1}', ["damaged"]),
    ],
)
def test_other_archives_are_refused(path, entry, text, words):
    rewrite_archive(path, entry, text)
    assert_refused(path, *words)


def test_only_a_tflite_model_is_written(tmp_path):
    with pytest.raises(InputError, match="TFL3"):
        tflite_file.write(tmp_path / "model.tflite", b"PK", {})
    assert not list(tmp_path.iterdir())


def test_interpreters_load_the_file(tmp_path):
    function = tf.function(lambda x: 2 * x, input_signature=[tf.TensorSpec([3], tf.float32)])
    concrete = function.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], function)
    path = tmp_path / "double.tflite"
    tflite_file.write(path, converter.convert(), {"model": "double"})
    for loaded in (Interpreter(str(path)), Interpreter(model_content=path.read_bytes())):
        loaded.allocate_tensors()
        loaded.set_tensor(loaded.get_input_details()[0]["index"], np.float32([1, 2, 3]))
        loaded.invoke()
        answer = loaded.get_tensor(loaded.get_output_details()[0]["index"])
        np.testing.assert_array_equal(answer, [2, 4, 6])


def test_tensorflow_is_not_needed(path):
    program = (
        "import sys; from hne_tf.exported import tflite_file; "
        f"tflite_file.check({str(path)!r}); "
        "sys.exit('tensorflow' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
