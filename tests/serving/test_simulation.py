"""The budget policy in a simulated queue: what it does under load, exactly repeatable.

Requests arrive as a Poisson process at a server with a first-in-first-out queue; time
is simulated, the policy and its estimates are the real ones.
"""

import collections
import dataclasses
import functools
import heapq
import itertools
import random
import statistics

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from hne_tf.client.answers import BudgetError
from hne_tf.client.latency.latencies import Latencies
from hne_tf.client.messages import CallError, ModelInfo, Outputs, Signature, TensorSpec
from hne_tf.client.metrics import ClientMetrics
from hne_tf.client.policy import BudgetPolicy, Call, Learn, Wait

IMAGES = np.zeros([1, 8, 8, 1], np.uint8)
# Milliseconds: the full ensemble is six times a single leaf.
COSTS = {1: 5.0, 2: 8.0, 4: 13.0, 8: 20.0, 16: 30.0}
FULL = 16
BUDGET_MS = 4 * COSTS[FULL]
_SPEC = Signature(
    {"images": TensorSpec("uint8", (None, 8, 8, 1))},
    {"probabilities": TensorSpec("float32", (None, 10))},
)
INFO = ModelInfo(1, {f"ensemble_{size}": _SPEC for size in COSTS})
_OUTPUTS = Outputs(1, {"probabilities": np.zeros([1, 10], np.float32)})
_TRANSPORT_S = 0.0003


@dataclasses.dataclass
class _Job:
    size: int
    deadline: float
    steps: object
    done: bool = False


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a request: `size` is None without an answer."""

    arrived: float
    latency_ms: float
    size: int | None
    attempts: int = 0

    @property
    def inside(self):
        return self.size is not None and self.latency_ms <= BUDGET_MS


class Simulation:
    """Clients and a server on one simulated clock.

    Args:
      workers: requests that the server computes at once.
      noise: sigma of the service times' log-normal factor.
      drops: whether the server leaves out requests whose client has given up.
    """

    def __init__(self, seed, workers=1, noise=0.1, drops=True, prior=None):
        self.now = 0.0
        self.random = random.Random(seed)
        self.results = []
        self.speed = 1.0
        self._events = []
        self._order = itertools.count()
        self._workers = workers
        self._noise = noise
        self._drops = drops
        self._queue = collections.deque()
        self.policies = [self.client(seed, prior)]

    def client(self, seed, prior=None):
        self.latencies = Latencies(prior, clock=lambda: self.now)
        metrics = ClientMetrics(CollectorRegistry())
        return BudgetPolicy("digits", self.latencies, metrics, clock=lambda: self.now, seed=seed)

    def arrivals(self, rate, seconds, ask):
        """Poisson arrivals from now on."""
        at = self.now
        while (at := at + self.random.expovariate(rate)) < self.now + seconds:
            self.at(at, ask)
        return self

    def run(self):
        """Until nothing happens any more; returns the results in order of arrival."""
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()
        return sorted(self.results, key=lambda result: result.arrived)

    def at(self, when, action):
        heapq.heappush(self._events, (when, next(self._order), action))

    def adaptive(self, policy=None):
        started = self.now
        steps = (policy or self.policies[0]).answer(IMAGES, BUDGET_MS)
        self._go_on(steps, started, lambda: next(steps))

    def fixed(self):
        """Asks for the full ensemble, once."""
        started = self.now

        def steps():
            try:
                yield Call(FULL, BUDGET_MS / 1000)
                self._finish(started, FULL)
            except CallError:
                self._finish(started, None)
            yield None

        asked = steps()
        self._submit(next(asked), lambda step: step(asked))

    def _go_on(self, steps, started, move):
        try:
            action = move()
        except StopIteration as finished:
            self._finish(started, finished.value.size, len(finished.value.attempts))
        except BudgetError as error:
            self._finish(started, None, len(error.attempts))
        else:
            if isinstance(action, Learn):
                self.at(
                    self.now + _TRANSPORT_S,
                    lambda: self._go_on(steps, started, lambda: steps.send(INFO)),
                )
            elif isinstance(action, Wait):
                self.at(
                    self.now + action.seconds,
                    lambda: self._go_on(steps, started, lambda: steps.send(None)),
                )
            else:
                self._submit(action, lambda step: self._go_on(steps, started, lambda: step(steps)))

    def _finish(self, started, size, attempts=1):
        self.results.append(Result(started, 1000 * (self.now - started), size, attempts))

    def _submit(self, call, resume):
        job = _Job(call.size, self.now + call.timeout_s, resume)

        def give_up():
            if not job.done:
                job.done = True
                error = CallError("late", grpc.StatusCode.DEADLINE_EXCEEDED)
                resume(lambda steps: steps.throw(error))

        self.at(job.deadline, give_up)
        self._queue.append(job)
        self._serve()

    def _serve(self):
        while self._workers and self._queue:
            job = self._queue.popleft()
            if job.done and self._drops:
                continue
            self._workers -= 1
            service = COSTS[job.size] / self.speed * self.random.lognormvariate(0, self._noise)
            self.at(self.now + service / 1000 + _TRANSPORT_S, lambda job=job: self._complete(job))

    def _complete(self, job):
        self._workers += 1
        if not job.done:
            job.done = True
            job.steps(lambda steps: steps.send(_OUTPUTS))
        self._serve()


def share(results, condition):
    return sum(map(condition, results)) / len(results)


def inside(results):
    return share(results, lambda result: result.inside)


def mean_size(results):
    return statistics.mean(result.size for result in results if result.inside)


def full_share(results):
    sizes = [result.size for result in results if result.inside]
    return sizes.count(FULL) / len(sizes)


def simulated(rate, seconds=40, seed=1, **options):
    simulation = Simulation(seed, **options)
    return simulation.arrivals(rate, seconds, simulation.adaptive).run()


@functools.cache
def knee(workers, noise):
    """The load in requests per second at which the full ensemble misses 5% of its budgets."""
    low, high = 5.0, 100.0 * workers
    for _ in range(8):
        middle = (low * high) ** 0.5
        simulation = Simulation(2, workers, noise)
        simulation.arrivals(middle, 120, simulation.fixed)
        low, high = (low, middle) if inside(simulation.run()) < 0.95 else (middle, high)
    return high


SERVERS = [(1, 0.1), (2, 0.1), (2, 0.3)]


@pytest.mark.parametrize(("workers", "noise"), SERVERS)
@pytest.mark.parametrize("drops", [True, False])
def test_answers_are_in_time_at_twice_the_load_that_the_full_ensemble_bears(workers, noise, drops):
    rate = 2 * knee(workers, noise)
    results = simulated(rate, workers=workers, noise=noise, drops=drops)
    assert len(results) > 30 * rate
    assert inside(results) >= 0.99


@pytest.mark.parametrize(("workers", "noise"), SERVERS)
def test_most_answers_are_full_at_half_the_load_that_the_full_ensemble_bears(workers, noise):
    results = simulated(0.5 * knee(workers, noise), workers=workers, noise=noise)
    assert full_share(results) >= 0.95
    assert inside(results) >= 0.99


@pytest.mark.parametrize(("workers", "noise"), SERVERS)
def test_the_mean_size_falls_smoothly_in_between(workers, noise):
    factors = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    sizes = [
        mean_size(simulated(factor * knee(workers, noise), workers=workers, noise=noise))
        for factor in factors
    ]
    for before, after in itertools.pairwise(sizes):
        # No rise beyond chance, and no cliff.
        assert after <= 1.03 * before
        assert after >= 0.6 * before
    assert sizes[-1] > 4


@pytest.mark.parametrize(("workers", "noise"), SERVERS)
def test_back_at_the_full_ensemble_soon_after_the_load_falls(workers, noise):
    simulation = Simulation(5, workers, noise)
    simulation.arrivals(2 * knee(workers, noise), 20, simulation.adaptive)
    simulation.at(
        20, lambda: simulation.arrivals(0.25 * knee(workers, noise), 20, simulation.adaptive)
    )
    after = [result for result in simulation.run() if result.arrived >= 20]
    assert full_share([result for result in after if result.arrived >= 25]) >= 0.95
    assert full_share([result for result in after if result.arrived >= 30]) >= 0.95


def test_more_than_the_smallest_ensembles_capacity_is_refused_not_answered_late():
    # Twice what one worker can do with single leaves; the server computes what was given up.
    results = simulated(400, 20, drops=False, prior={1: COSTS})
    assert inside(results) > 0.15
    refused = [result for result in results if result.size is None and result.attempts == 0]
    assert len(refused) > 0.3 * len(results)


def test_a_rush_at_a_client_that_knows_nothing_is_survived():
    results = simulated(300, 10, drops=False)
    assert inside(results[1500:]) > 0.3


def test_other_clients_load_is_noticed():
    """Half of the load is of a client that always asks for everything."""
    simulation = Simulation(4, workers=2)
    rate = 0.6 * knee(2, 0.1)
    simulation.arrivals(rate, 40, simulation.adaptive)
    alone = mean_size(simulation.run())
    simulation = Simulation(4, workers=2)
    simulation.arrivals(rate, 40, simulation.adaptive)
    busy = simulation.client(9)
    simulation.policies.append(busy)
    simulation.arrivals(rate, 40, lambda: simulation.adaptive(busy))
    results = simulation.run()
    assert inside(results) >= 0.985
    assert mean_size(results) < alone


def test_a_server_that_was_slow_is_tried_again():
    simulation = Simulation(6)
    simulation.speed = 0.2
    simulation.arrivals(2, 20, simulation.adaptive)
    simulation.at(20, lambda: setattr(simulation, "speed", 1.0))
    simulation.at(20, lambda: simulation.arrivals(2, 20, simulation.adaptive))
    results = simulation.run()
    assert mean_size([result for result in results if 10 < result.arrived < 20]) < FULL
    assert full_share([result for result in results if result.arrived > 30]) == 1.0
