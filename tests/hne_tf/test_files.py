import concurrent.futures
import json

import pytest

from hne_tf import files
from hne_tf.errors import InputError


def test_a_written_file_holds_the_value_and_leaves_nothing_beside_it(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": [1, 2]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, 2]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_writers_in_one_process_do_not_share_a_temporary_name(tmp_path):
    path = tmp_path / "a.txt"
    with files.replacing(path) as first:
        first.write_text("first")
        with files.replacing(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
        assert first.read_text() == "first"
    assert path.read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_threads_that_write_the_same_file_all_end_well(tmp_path):
    path, texts = tmp_path / "a.txt", [str(number) * 10_000 for number in range(8)]

    def write(text):
        for _ in range(50):
            files.write_text(path, text)
            assert path.read_text() in texts

    with concurrent.futures.ThreadPoolExecutor(len(texts)) as threads:
        list(threads.map(write, texts))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_that_fails_midway_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("half of the ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_threads_that_write_one_file_leave_one_of_their_texts(tmp_path):
    path = tmp_path / "value.json"
    texts = [str(number) * 10_000 for number in range(8)]

    def write(text):
        for _ in range(20):
            files.write_text(path, text)

    with concurrent.futures.ThreadPoolExecutor(len(texts)) as threads:
        list(threads.map(write, texts))
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 100_000, b"9" * 5000, b"\xed\xa0\x80"],
    ids=["empty", "cut", "deep", "long", "no text"],
)
def test_what_is_no_json_is_one_line(tmp_path, content):
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="must be readable JSON"):
        files.read_json(path)
