"""Which rows of other libraries a benchmark takes, and what it says of the others."""

import importlib.util

import pytest

from benchmarks import train_step


@pytest.fixture
def packages(monkeypatch):
    """What is installed, by a set that tests change."""
    installed = {"torch", "jax"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name in installed else None
    )
    return installed


@pytest.mark.parametrize(
    ("only", "count"),
    [([], 8), (["branched"], 4), (["composed"], 2), (["grouped", "fused", "1"], 3), (["2"], 0)],
)
def test_peers_have_the_words_asked_for(packages, only, count):
    rows = train_step._peers(only)
    assert len(set(rows)) == count
    assert all({row.factory, row.norms, row.precision, row.devices} >= {*only} for row in rows)


def test_what_is_not_installed_is_told(packages, capsys):
    packages.remove("torch")
    assert {row.library for row in train_step._peers([])} == {train_step.JAX}
    assert capsys.readouterr().out == "torch is not installed: rows of PyTorch are left out\n"


def test_a_failure_is_told_in_a_line():
    traceback = (
        'Traceback (most recent call last):\n  File "x.py", line 1, in step\n'
        "torch._inductor.exc.InductorError: InvalidCxxCompiler: No working C++ compiler found\n\n"
        "Set TORCHDYNAMO_VERBOSE=1 for the internal stack trace\n"
    )
    assert train_step._reason(traceback).endswith(
        "InvalidCxxCompiler: No working C++ compiler found"
    )
