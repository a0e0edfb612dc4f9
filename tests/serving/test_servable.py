"""Which folder is served, and what is said of those that cannot be."""

import shutil

import pytest

from hne_tf.errors import InputError
from hne_tf.server.servable import Servable, latest_version_path


def _folders(base, *names):
    for name in names:
        (base / name).mkdir()
    return base


def test_the_largest_integer_is_the_latest(tmp_path):
    assert latest_version_path(_folders(tmp_path, "9", "10", "2")).name == "10"


def test_what_is_no_integer_is_ignored(tmp_path):
    _folders(tmp_path, "1", "tmp-5", "6.partial", ".7", "٨", str(2**63))
    (tmp_path / "9").write_text("a file")
    assert latest_version_path(tmp_path).name == "1"


def test_an_empty_base_path_is_refused(tmp_path):
    with pytest.raises(InputError, match="must hold a folder per version"):
        latest_version_path(_folders(tmp_path, "latest"))


def test_a_missing_base_path_is_refused(tmp_path):
    with pytest.raises(InputError, match="must be a folder"):
        latest_version_path(tmp_path / "absent")


def test_an_empty_version_is_refused(tmp_path):
    with pytest.raises(InputError, match="must hold a SavedModel"):
        Servable("digits", _folders(tmp_path, "1") / "1")


def test_a_damaged_graph_is_refused(base_path, tmp_path):
    shutil.copytree(base_path / "7", tmp_path / "1")
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"not a protocol buffer")
    with pytest.raises(InputError, match="must hold a SavedModel"):
        Servable("digits", tmp_path / "1")


def test_missing_variables_are_refused(base_path, tmp_path):
    shutil.copytree(base_path / "7", tmp_path / "1")
    shutil.rmtree(tmp_path / "1" / "variables")
    with pytest.raises(InputError, match="must hold a SavedModel"):
        Servable("digits", tmp_path / "1")
