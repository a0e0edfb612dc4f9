import dataclasses
import itertools
import pathlib

import numpy as np
import pytest

from hne_tf.exported.measurements import Measurement
from hne_tf.exported.profiling import latency


def test_all_take_one_turn_per_round_in_changing_order():
    calls = []
    timers = {name: lambda name=name: calls.append(name) or len(calls) for name in "abcd"}
    times = latency.take_turns(timers, runs=20)
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
    assert latency.timer(lambda: calls.append(1))() == pytest.approx(25.0)
    assert len(calls) == 2


def test_a_measurement_holds_percentiles():
    measured = latency._measurement("ensemble_2", 4, 1, list(1 + np.arange(101) / 10))
    assert measured == Measurement("ensemble_2", 4, 101, 6.0, 10.5, 10.9, threads=1)


@dataclasses.dataclass(frozen=True)
class Model:
    """What the fake workers need to know of a model."""

    path: pathlib.Path
    sizes: tuple[int, ...]
    default_threads: int = 2


@pytest.fixture
def fake_workers(monkeypatch):
    """Replaces processes: a call of model i with t threads takes 100 i + t ms."""
    started = []

    class Worker(dict):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    def worker(models, batch_sizes, threads):
        started.append(([str(each.path) for each in models], threads))
        return Worker(
            {
                (position, f"ensemble_{size}", batch): lambda each=each: (
                    100 * int(each.path.stem) + threads
                )
                for position, each in enumerate(models)
                for batch in batch_sizes
                for size in each.sizes
            }
        )

    monkeypatch.setattr(latency, "_worker", worker)
    return started


def test_models_share_a_process_per_number_of_threads(fake_workers, tmp_path):
    first = latency.Subject(Model(tmp_path / "1", (1, 2)), (1, 2))
    second = latency.Subject(Model(tmp_path / "2", (1,)), (2, 3))
    latencies = latency.measure_together([first, second], batch_sizes=(1, 8), runs=4)
    both = [str(first.model.path), str(second.model.path)]
    assert fake_workers == [(both[:1], 1), (both, 2), (both[1:], 3)]
    for number, (subject, measured) in enumerate(zip((first, second), latencies, strict=True), 1):
        assert measured.hardware["cores"] >= 1
        rows = measured.measurements
        # A row per signature and batch size, as servers read them.
        names = [f"ensemble_{size}" for size in subject.model.sizes]
        assert [(row.batch_size, row.signature) for row in rows] == list(
            itertools.product((1, 8), names)
        )
        assert {row.threads for row in rows} == {2}
        assert {row.threads for row in measured.other_threads} == set(subject.threads) - {2}
        for row in rows + measured.other_threads:
            assert row.p50_ms == row.p99_ms == 100 * number + row.threads
            assert row.runs == 4
