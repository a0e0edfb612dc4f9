import os

import pytest

from hne_tf import hardware


@pytest.mark.parametrize(
    ("given", "preferred", "expected"),
    [
        (None, True, "1"),
        (None, False, "0"),
        (None, None, None),
        ("0", True, "0"),
        ("1", False, "1"),
    ],
)
def test_onednn_is_chosen_unless_the_user_has_chosen(monkeypatch, given, preferred, expected):
    # Set first, so that the variable is put back whatever it was.
    monkeypatch.setenv(hardware.ONEDNN_VARIABLE, "0")
    if given is None:
        monkeypatch.delenv(hardware.ONEDNN_VARIABLE)
    else:
        monkeypatch.setenv(hardware.ONEDNN_VARIABLE, given)
    hardware.prefer_onednn(preferred)
    assert os.environ.get(hardware.ONEDNN_VARIABLE) == expected


def test_tensorflow_tells_what_it_computes_with():
    # What tests/conftest.py chooses, or the environment before it.
    assert hardware.has_onednn() == (os.environ[hardware.ONEDNN_VARIABLE] == "1")
