import itertools

import numpy as np
import pytest

from hne_tf.exported import latency


def test_all_take_one_turn_per_round_in_changing_order():
    calls = []
    timers = {name: lambda name=name: calls.append(name) or len(calls) for name in "abcd"}
    times = latency._take_turns(timers, runs=20)
    rounds = [tuple(calls[start : start + 4]) for start in range(0, len(calls), 4)]
    assert all(sorted(turns) == list("abcd") for turns in rounds)
    assert len(set(rounds)) > 5
    # The calls after the warm-up count, each with what its timer gave.
    warm_up = len(rounds) - 20
    assert warm_up > 0
    for name, values in times.items():
        numbers = [
            4 * number + turns.index(name) + 1
            for number, turns in enumerate(rounds)
            if number >= warm_up
        ]
        assert values == numbers


def test_a_call_is_timed_after_one_that_is_not(monkeypatch):
    clock = iter([10.0, 10.025])
    calls = []
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock))
    assert latency._timer(lambda: calls.append(1))() == pytest.approx(25.0)
    assert len(calls) == 2


def test_a_row_holds_percentiles():
    row = latency._row("ensemble_2", 4, 1, list(np.arange(101) / 10))
    assert row == {
        "signature": "ensemble_2",
        "batch_size": 4,
        "threads": 1,
        "runs": 101,
        "p50_ms": 5.0,
        "p95_ms": 9.5,
        "p99_ms": 9.9,
    }


@pytest.fixture
def fake_workers(monkeypatch):
    """Replaces processes: a call of subject i with t threads takes 100 i + t ms."""
    started = []

    class Worker(dict):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    def worker(subjects, batch_sizes, threads):
        started.append(([str(each.path) for each in subjects], threads))
        return Worker(
            {
                (position, name, batch): lambda each=each: 100 * int(each.path.stem) + threads
                for position, each in enumerate(subjects)
                for name in each.signatures
                for batch in batch_sizes
            }
        )

    monkeypatch.setattr(latency, "_worker", worker)
    monkeypatch.setattr(latency, "default_threads", lambda path: 2)
    return started


def test_models_share_a_process_per_number_of_threads(fake_workers, tmp_path):
    first = latency.Subject(tmp_path / "1", ("ensemble_1", "ensemble_2"), (1, 2))
    second = latency.Subject(tmp_path / "2", ("ensemble_1",), (2, 3))
    latencies = latency.measure_together([first, second], batch_sizes=(1, 8), runs=4)
    both = [str(first.path), str(second.path)]
    assert fake_workers == [(both[:1], 1), (both, 2), (both[1:], 3)]
    for number, (subject, measured) in enumerate(zip((first, second), latencies, strict=True), 1):
        assert measured["hardware"]["cores"] >= 1
        rows = measured["measurements"]
        # A row per signature and batch size, as servers read them.
        assert [(row["signature"], row["batch_size"]) for row in rows] == list(
            itertools.product(subject.signatures, (1, 8))
        )
        assert {row["threads"] for row in rows} == {2}
        other = {row["threads"] for row in measured["other_threads"]}
        assert other == set(subject.threads) - {2}
        for row in rows + measured["other_threads"]:
            assert row["p50_ms"] == row["p99_ms"] == 100 * number + row["threads"]
            assert row["runs"] == 4


def test_servers_and_phones_have_their_own_default_of_threads(tmp_path):
    assert latency.default_threads(tmp_path / "model.tflite") == 1
    assert latency.default_threads(tmp_path / "1") >= 1
