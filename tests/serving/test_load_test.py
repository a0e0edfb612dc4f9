"""The load test: its numbers on made-up servers, and a short run against a real one."""

import asyncio
import dataclasses
import math
import re
import time

import grpc
import matplotlib
import numpy as np
import pytest

from hne_tf.errors import InputError
from hne_tf.exported.measurements import Accuracy
from serving import load, load_generator, load_report, load_test
from serving.load import Outcome, Point, Request

_ACCURACY = {1: 0.8, 2: 0.9, 4: 0.95}


def _request(outcome, latency_ms=5.0, size=None, scheduled_s=0.0):
    return Request(scheduled_s, latency_ms, outcome, size)


def _point(client, rate, inside, size=4.0, full_share=1.0, accuracy=0.95):
    outcomes = dict.fromkeys(Outcome, 0)
    outcomes[Outcome.INSIDE] = round(1000 * inside)
    outcomes[Outcome.LATE] = 1000 - outcomes[Outcome.INSIDE]
    return Point(
        client=client,
        load=rate,
        arrivals=1000,
        outcomes=outcomes,
        goodput=rate * inside,
        p50_ms=5.0,
        p99_ms=9.0,
        mean_size=size,
        full_share=full_share,
        accuracy=accuracy,
        lag_p99_ms=0.1,
    )


def test_arrivals_are_poisson():
    times = load.arrivals(50.0, 400.0, seed=3)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert np.all(gaps >= 0)
    assert times[0] >= 0
    assert times[-1] <= 400
    # An exponential distribution's standard deviation is its mean.
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.03)
    per_second = np.histogram(times, bins=400, range=(0, 400))[0]
    assert per_second.var() == pytest.approx(50, rel=0.25)


def test_a_seed_gives_the_same_arrivals_and_another_gives_others():
    first, again, other = (load.arrivals(20.0, 10.0, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_every_arrival_has_one_outcome():
    requests = [
        _request(Outcome.INSIDE, 4.0, 4),
        _request(Outcome.INSIDE, 3.0, 1),
        _request(Outcome.INSIDE, 3.0, 1),
        _request(Outcome.LATE, 12.0, 4),
        _request(Outcome.LATE, 10.0),
        _request(Outcome.REJECTED, 1.0),
        _request(Outcome.FAILED, 2.0),
        _request(Outcome.INSIDE, 5.0, 4),
    ]
    point = load.summarise("adaptive", 4.0, requests, 8, 2.0, _ACCURACY)
    assert [point.outcomes[outcome] for outcome in Outcome] == [4, 2, 1, 1]
    assert point.goodput == 2.0
    assert point.inside == 0.5
    assert point.mean_size == 2.5
    assert point.full_share == 0.5
    assert point.accuracy == pytest.approx((0.95 + 0.8 + 0.8 + 0.95) / 4)
    assert point.right_in_time == pytest.approx(point.accuracy / 2)
    assert point.p50_ms == 3.0
    assert point.p99_ms == 12.0


def test_a_lost_request_is_noticed():
    with pytest.raises(AssertionError, match="3 arrivals"):
        load.summarise("fixed", 1.0, [_request(Outcome.INSIDE, size=4)] * 2, 3, 1.0, _ACCURACY)


def test_a_point_without_an_answer_has_no_accuracy():
    point = load.summarise("fixed", 1.0, [_request(Outcome.LATE)], 1, 1.0, _ACCURACY)
    assert math.isnan(point.accuracy)
    assert math.isnan(point.mean_size)
    assert point.right_in_time == 0.0
    assert "nan" not in load_report.table([point], 1.0)


@pytest.mark.parametrize("start", [1.0, 30.0, 47.0, 200.0])
def test_the_knee_is_where_misses_reach_5_percent(start):
    runs = []

    def misses(rate):
        runs.append(rate)
        # 5% at a load of 40.
        return min(1.0, 0.05 * (rate / 40.0) ** 8)

    assert load.find_knee(misses, start) == pytest.approx(40.0, rel=0.03)
    assert len(runs) < 20


def test_a_budget_that_is_never_or_always_missed_has_no_knee():
    with pytest.raises(InputError, match="missed at some load"):
        load.find_knee(lambda rate: 0.0, 10.0)
    with pytest.raises(InputError, match="must allow the full ensemble"):
        load.find_knee(lambda rate: 1.0, 10.0)


def test_the_knee_is_read_between_given_loads():
    points = [_point("fixed", 10, 1.0), _point("fixed", 20, 0.99), _point("fixed", 30, 0.89)]
    assert load.knee_between(points) == pytest.approx(24.0)
    assert load.knee_between(points[:2]) is None
    assert load.knee_between(points[2:]) is None


def test_recovery_is_timed_to_the_first_of_twenty_full_answers():
    sizes = [1] * 10 + [4, 1, 1] + [4] * 30
    requests = [
        _request(Outcome.INSIDE, size=size, scheduled_s=10 + 0.1 * index)
        for index, size in enumerate(sizes)
    ]
    before = [_request(Outcome.INSIDE, size=4, scheduled_s=1.0)] * 30
    # The lone 4 at 11.0 does not count, the row of them from 11.3 does.
    assert load.recovery_s([*before, *requests], 10.0, 4) == pytest.approx(1.3)
    assert load.recovery_s(requests[:25], 10.0, 4) == math.inf


def test_bars_compare_the_right_points():
    points = [
        _point("adaptive", 5.0, 1.0),
        _point("adaptive", 10.0, 1.0, 3.0, 0.5, 0.93),
        _point("adaptive", 20.0, 0.992, 1.5, 0.1, 0.85),
        _point("fixed", 20.0, 0.1),
    ]
    good = load.bars(points, 10.0, 2.0, 5.0)
    assert [bar.met for bar in good] == [True, True, True, True, True]
    assert [bar.measured for bar in good] == [
        "5.0 times",
        "99.20%",
        "100.00%",
        "fall, at most 60% of it from one load to the next",
        "2.0 s",
    ]
    rising = [*points[:2], _point("adaptive", 20.0, 0.98, 3.5, 0.1, 0.94)]
    bad = load.bars(rising, 10.0, math.inf, 4.9)
    assert [bar.met for bar in bad] == [False, False, True, False, False]
    nothing = load.bars(points, None, None, 5.0)
    assert [bar.met for bar in nothing] == [True, None, None, None, None]


@pytest.mark.parametrize(
    ("sizes", "met"),
    [
        ((4.0, 3.0, 2.0, 1.0), True),
        ((4.0, 4.0, 4.0, 4.0), True),
        # A cliff, within the fall and at its end.
        ((4.0, 4.0, 1.1, 1.0), False),
        ((4.0, 4.0, 4.0, 1.0), False),
        ((4.0, 2.0, 2.5, 1.0), False),
        ((4.0, 3.0, math.nan, math.nan), False),
    ],
)
def test_a_smooth_fall_has_neither_rise_nor_cliff(sizes, met):
    loads = (5.0, 10.0, 15.0, 20.0)
    points = [_point("adaptive", rate, 1.0, size) for rate, size in zip(loads, sizes, strict=True)]
    assert load.bars(points, 10.0, None, 5.0)[3].met is met


def test_the_plot_shows_what_the_table_does(tmp_path):
    points = [_point(c, r, 0.9) for c in ("fixed", "adaptive") for r in (10.0, 20.0)]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        load_report.plot(points, 15.0, 50.0, "Under load", tmp_path / "load.svg")
    drawn = (tmp_path / "load.svg").read_text()
    for words in ("goodput", "99th percentile", "median", "mean ensemble size", "accuracy"):
        assert words in drawn
    for words in ("fixed", "adaptive", "knee", "budget"):
        assert f">{words}</text>" in drawn


def test_the_table_has_a_row_per_load_and_client():
    points = [_point(c, r, 0.9) for c in ("fixed", "adaptive") for r in (10.0, 20.0)]
    lines = load_report.table(points, 20.0).splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:4]] for line in lines[2:]] == [
        ["10.0", "0.50", "adaptive"],
        ["10.0", "0.50", "fixed"],
        ["20.0", "1.00", "adaptive"],
        ["20.0", "1.00", "fixed"],
    ]
    assert len({line.count("|") for line in lines}) == 1


class _Refused(grpc.RpcError):
    def __init__(self, code):
        self._code = code

    def code(self):
        return self._code


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, Outcome.LATE),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Outcome.REJECTED),
        (grpc.StatusCode.UNAVAILABLE, Outcome.REJECTED),
        (grpc.StatusCode.INVALID_ARGUMENT, Outcome.FAILED),
    ],
)
def test_errors_are_outcomes(code, outcome):
    assert load_generator.outcome_of(_Refused(code)) is outcome
    wrapped = InputError("refused")
    wrapped.__cause__ = _Refused(code)
    assert load_generator.outcome_of(wrapped) is outcome


def test_a_slow_answer_delays_no_later_request():
    sent = []

    async def ask(left_ms):
        sent.append((time.perf_counter(), left_ms))
        await asyncio.sleep(0.2)
        return 4

    schedule = [0.01 * index for index in range(20)]
    ran = asyncio.run(load_generator.send(ask, schedule, budget_ms=150.0))
    assert sent[-1][0] - sent[0][0] == pytest.approx(0.19, abs=0.05)
    assert {request.outcome for request in ran.requests} == {Outcome.LATE}
    assert [request.scheduled_s for request in ran.requests] == schedule


def test_a_generator_that_falls_behind_shows_as_latency():
    async def ask(left_ms):
        # Holds up the whole event loop.
        time.sleep(0.05)
        return 4

    ran = asyncio.run(load_generator.send(ask, [0.0, 0.001, 0.002, 0.003], budget_ms=120.0))
    latencies = [request.latency_ms for request in ran.requests]
    assert latencies[1] > 95
    assert ran.requests[-1].outcome is Outcome.LATE
    assert ran.requests[-1].lag_ms > 90


def test_what_gets_stuck_or_breaks_is_a_failure(monkeypatch):
    monkeypatch.setattr(load_generator, "_GRACE_S", 0.05)

    async def ask(left_ms):
        if left_ms > 0:
            await asyncio.sleep(3600)
        return 4

    async def broken(left_ms):
        raise KeyError("a defect")

    for faulty in (ask, broken):
        ran = asyncio.run(load_generator.send(faulty, [0.0, 0.01], budget_ms=300.0))
        assert [request.outcome for request in ran.requests] == [Outcome.FAILED] * 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--target=192.0.2.7:8500"],
        ["--target=serving.example:8500"],
        ["--target=dns:///serving.example:8500"],
        ["--target=0.0.0.0:8500"],
        ["--loads=10,x"],
        ["--loads=0"],
        [f"--loads={','.join(map(str, range(1, 22)))}"],
        ["--budget_ms=0"],
        ["--budget_ms=nan"],
        ["--results=page.txt"],
        ["--manifest=absent.json"],
        ["--seconds=0"],
        ["extra"],
    ],
)
def test_bad_flags_get_one_line(assert_refused, manifest_path, arguments):
    flag = arguments[0].split("=")[0].lstrip("-")
    given = ["--model=digits", f"--manifest={manifest_path}", "--budget_ms=50", *arguments]
    assert_refused(load_test, given, flag)


def test_more_images_than_a_batch_are_refused_with_the_limit(
    address, service, tmp_path, manifest, assert_refused
):
    accuracy = Accuracy("test", 100, {1: 0.8, 2: 0.9, 4: 0.95})
    path = tmp_path / "manifest.json"
    path.write_text(dataclasses.replace(manifest, accuracy=accuracy).to_text())
    details = "Task size 5 is larger than maximum input batch size 4"
    service.fault = lambda name, call: (grpc.StatusCode.INVALID_ARGUMENT, details)
    given = [f"--target={address}", "--model=digits", f"--manifest={path}", "--batch_size=5"]
    reason = f"at most 4 images, the largest batch of the server at {address}, got 5"
    assert_refused(load_test, [*given, "--budget_ms=5000"], "--target", reason)


def test_both_clients_against_a_server(server, tmp_path, manifest, run_binary):
    accuracy = Accuracy("test", 100, {1: 0.8, 2: 0.9, 4: 0.95})
    path = tmp_path / "manifest.json"
    path.write_text(dataclasses.replace(manifest, accuracy=accuracy).to_text())
    page = tmp_path / "serving.md"
    code, lines, errors = run_binary(
        load_test,
        f"--target={server.address}",
        "--model=digits",
        f"--manifest={path}",
        "--batch_size=4",
        "--budget_ms=5000",
        "--loads=15,30",
        "--seconds=1",
        "--warm_up_s=0.3",
        f"--results={page}",
    )
    assert (code, errors) == (0, [])
    rows = [line for line in page.read_text().splitlines() if re.search(r"adaptive +\|", line)]
    rows += [line for line in page.read_text().splitlines() if re.search(r"fixed +\|", line)]
    assert len(rows) == 4
    assert rows == [line for line in lines if re.search(r"adaptive +\|", line)] + [
        line for line in lines if re.search(r"fixed +\|", line)
    ]
    for row in rows:
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        inside, late, rejected, failed = (float(cells[i].rstrip("%")) for i in (3, 7, 8, 9))
        assert inside > 0
        assert failed == 0
        assert inside + late + rejected == pytest.approx(100, abs=0.1)
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "python -m serving.load_test" in page.read_text()
