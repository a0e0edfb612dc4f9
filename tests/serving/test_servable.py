"""What is said of folders that cannot be served."""

import shutil

import pytest

from hne_tf.errors import InputError
from hne_tf.server.servable import Servable


def test_an_empty_version_is_refused(tmp_path):
    (tmp_path / "1").mkdir()
    with pytest.raises(InputError, match="must hold a SavedModel"):
        Servable("digits", tmp_path / "1")


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
