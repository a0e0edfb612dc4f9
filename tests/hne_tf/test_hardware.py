import os

from hne_tf import hardware


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6})
        assert hardware.cores() == 3
    # As on macOS.
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert hardware.cores() == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert hardware.cores() == 1
