import dataclasses
import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from hne_tf.exported.manifest import Manifest
from hne_tf.exported.measurements import MeasuredLatency, Measurement
from hne_tf.exported.profiling import latency, runtimes
from hne_tf.tree import Tree


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
    has_onednn: bool = False


@pytest.fixture
def side_by_side():
    return 2


@pytest.fixture
def fake_workers(monkeypatch, side_by_side):
    """Replaces processes: a call of model i with t threads takes 100 i + t ms.

    With oneDNN a batch of 1 takes four times as long, and others half as long. Side by
    side both take `side_by_side` times as long.
    """
    started = []

    class Worker(dict):
        def __enter__(self):
            return lambda: self

        def __exit__(self, *error):
            pass

    def worker(models, batch_sizes, setting):
        started.append(([str(each.path) for each in models], *setting))
        return Worker(
            {
                (position, f"ensemble_{size}", batch): lambda each=each, batch=batch: (
                    (100 * int(each.path.stem) + setting.threads)
                    * ((4 if batch == 1 else 0.5) if setting.onednn else 1)
                    * (side_by_side if setting.side_by_side else 1)
                )
                for position, each in enumerate(models)
                for batch in batch_sizes
                for size in each.sizes
            }
        )

    monkeypatch.setattr(latency, "worker", worker)
    return started


def test_models_share_a_process_per_number_of_threads(fake_workers, tmp_path):
    first = latency.Subject(Model(tmp_path / "1", (1, 2)), (1, 2))
    second = latency.Subject(Model(tmp_path / "2", (1,)), (2, 3))
    latencies = latency.measure_together([first, second], batch_sizes=(1, 8), runs=4)
    both = [str(first.model.path), str(second.model.path)]
    plain = (False, False)
    assert fake_workers == [(both[:1], 1, *plain), (both, 2, *plain), (both[1:], 3, *plain)]
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
        assert measured.onednn is None
        assert measured.other_onednn == ()


def test_saved_models_are_measured_with_and_without_onednn(fake_workers, tmp_path):
    version = latency.Subject(Model(tmp_path / "1", (1, 2), has_onednn=True), (1, 2))
    file = latency.Subject(Model(tmp_path / "2", (1,)), (2,))
    measured, of_file = latency.measure_together([version, file], batch_sizes=(1, 8), runs=2)
    first, both = [str(version.model.path)], [str(tmp_path / "1"), str(tmp_path / "2")]
    assert fake_workers == [
        (first, 1, False, False),
        (first, 1, True, False),
        (both, 2, False, False),
        # Only with the threads that a server has.
        (first, 2, False, True),
        (first, 2, True, False),
        (first, 2, True, True),
    ]
    # The geometric mean of 4 and 0.5 is above 1.
    assert measured.onednn is False
    assert {(row.threads, row.p50_ms) for row in measured.measurements} == {(2, 102.0)}
    assert not measured.side_by_side
    assert {(row.threads, row.side_by_side, row.p50_ms) for row in measured.other_threads} == {
        (1, False, 101.0),
        (2, True, 204.0),
    }
    slower = [row for row in measured.other_onednn if not row.side_by_side]
    assert {row.p50_ms for row in measured.other_onednn if row.side_by_side} == {816.0, 102.0}
    assert {(row.threads, row.batch_size, row.p50_ms) for row in slower} == {
        (1, 1, 404.0),
        (1, 8, 50.5),
        (2, 1, 408.0),
        (2, 8, 51.0),
    }
    assert [row.p50_ms for row in measured.rows(1, onednn=True)] == [404.0, 404.0, 50.5, 50.5]
    assert [row.p50_ms for row in measured.rows(1, onednn=False)] == [101.0] * 4
    assert list(measured.rows(2)) == list(measured.rows()) == list(measured.measurements)
    assert of_file.onednn is None


@pytest.mark.parametrize("side_by_side", [0.5])
def test_the_faster_use_of_threads_is_what_servers_read(fake_workers, tmp_path):
    subject = latency.Subject(Model(tmp_path / "1", (1, 2), has_onednn=True), (1, 2))
    (measured,) = latency.measure_together([subject], batch_sizes=(1, 8), runs=2)
    assert (measured.side_by_side, measured.onednn) == (True, False)
    assert [row.p50_ms for row in measured.measurements] == [51.0] * 4
    # By threads alone the faster way, where there are two.
    assert list(measured.rows(2)) == list(measured.measurements)
    assert [row.p50_ms for row in measured.rows(2, side_by_side=False)] == [102.0] * 4
    assert [row.p50_ms for row in measured.rows(1)] == [101.0] * 4


@pytest.mark.parametrize(("side_by_side", "chosen"), [(0.95, False), (0.85, True)])
def test_what_is_hardly_faster_changes_nothing(fake_workers, tmp_path, side_by_side, chosen):
    subject = latency.Subject(Model(tmp_path / "1", (1, 2), has_onednn=True), (1, 2))
    (measured,) = latency.measure_together([subject], batch_sizes=(1, 8), runs=2)
    assert measured.side_by_side == chosen
    assert {row.p50_ms for row in measured.measurements} == {102 * side_by_side if chosen else 102}


def litert_latency(**by_threads):
    """Of medians by number of threads; by one of them by default."""
    rows = {
        int(name[1:]): tuple(
            Measurement("ensemble_1", batch, 3, ms, ms, ms, int(name[1:]))
            for batch, ms in enumerate(medians, start=1)
        )
        for name, medians in by_threads.items()
    }
    first, *others = rows.values()
    return MeasuredLatency({}, first, tuple(row for each in others for row in each))


@pytest.mark.parametrize(
    ("by_threads", "best"),
    [
        ({"t1": (4, 40)}, 1),
        # Half the time of one thread for twice the threads pays, three quarters do not.
        ({"t1": (4, 40), "t2": (2, 20)}, 2),
        ({"t1": (4, 40), "t2": (3, 30)}, 1),
        ({"t1": (4, 40), "t2": (4.4, 17)}, 2),
        ({"t1": (4, 40), "t2": (2.2, 22), "t4": (1.2, 12)}, 4),
        ({"t1": (4, 40), "t2": (2.2, 22), "t4": (1.7, 17)}, 2),
    ],
)
def test_threads_of_a_call_must_pay_for_what_others_lose(by_threads, best):
    assert runtimes.best_threads(litert_latency(**by_threads)) == best
    assert (
        runtimes.chosen(litert_latency(**by_threads)).measurements[0].p50_ms
        == (by_threads[f"t{best}"][0])
    )


def test_what_was_measured_to_be_faster_is_in_the_manifest():
    shape, tree = (4, 4, 1), Tree((2,))

    def faster(of_litert, of_tensorflow):
        litert = of_litert and runtimes.chosen(litert_latency(t1=of_litert))
        latency = of_tensorflow and litert_latency(t2=of_tensorflow)
        made = Manifest.of_tree(tree, "m", ("a", "b"), shape, latency=latency, litert=litert)
        assert Manifest.from_text(made.to_text(), "a text") == made
        return made.litert_is_faster

    assert faster((1.0, 9.0), (2.0, 5.0))
    assert not faster((1.0, 11.0), (2.0, 5.0))
    # What one of them was not measured with does not count.
    assert faster((1.0, 11.0), (2.0,))
    assert not faster((1.0,), None)
    assert not faster(None, (2.0,))


def test_the_faster_setting_of_onednn_is_what_servers_read(fake_workers, tmp_path):
    subject = latency.Subject(Model(tmp_path / "1", (1,), has_onednn=True), (1, 2))
    (measured,) = latency.measure_together([subject], batch_sizes=(8, 16, 32), runs=2)
    assert measured.onednn is True
    assert {row.p50_ms for row in measured.measurements} == {51.0}


def test_a_worker_has_the_setting_that_it_is_asked_for(tmp_path, monkeypatch):
    program = tmp_path / "program"
    program.write_text(
        "#!/bin/sh\nread request\necho \"[[$TF_ENABLE_ONEDNN_OPTS, 'e', 1]]\" | tr \"'\" '\"'\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(latency.sys, "executable", str(program))
    for onednn in (False, True):
        with latency.worker([], [1], latency.Setting(1, onednn)) as loaded:
            assert list(loaded()) == [(int(onednn), "e", 1)]


def test_why_a_worker_ends_is_told_in_one_line():
    worker = subprocess.run(
        [sys.executable, "-m", latency.__name__], input="{}\n", capture_output=True, text=True
    )
    assert (worker.returncode, worker.stdout) == (1, "")
    # Native code may have written before.
    assert worker.stderr.splitlines()[-1] == "KeyError: 'threads'"
    assert "Traceback" not in worker.stderr
