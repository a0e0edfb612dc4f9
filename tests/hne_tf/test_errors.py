import sys

import pytest

from hne_tf.errors import InputError, MissingExtraError, ended_in_one_line, extra


def test_a_missing_package_is_reported_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    with pytest.raises(MissingExtraError) as raised, extra("compress"):
        import tf_keras  # noqa: F401
    assert (
        str(raised.value) == "tf_keras must be installed for this: pip install 'hne_tf[compress]'"
    )
    assert isinstance(raised.value, InputError)
    assert isinstance(raised.value, ImportError)
    assert raised.value.name == "tf_keras"


def test_a_missing_submodule_is_reported_by_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"^matplotlib must be installed"), extra("report"):
        from matplotlib.figure import Figure  # noqa: F401


def test_a_missing_module_of_ours_is_a_defect():
    with pytest.raises(ModuleNotFoundError, match=r"hne_tf\.trunk") as raised, extra("report"):
        import hne_tf.trunk  # noqa: F401
    assert not isinstance(raised.value, MissingExtraError)


def test_a_package_that_fails_to_load_keeps_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("raise ImportError('libtree.so: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="libtree") as raised, extra("report"):
        import broken_package  # noqa: F401
    assert not isinstance(raised.value, MissingExtraError)


def test_a_process_ends_with_its_whole_error_in_one_line():
    with pytest.raises(SystemExit) as end, ended_in_one_line():
        raise RuntimeError("no memory\n\t for that\nHint: buy some")
    assert end.value.code == "RuntimeError: no memory for that Hint: buy some"
    with ended_in_one_line():
        pass
