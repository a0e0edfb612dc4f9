"""Anytime inference: an answer after every leaf, and nothing computed twice.

Leaves are evaluated depth-first; the answer after n leaves is that of the ensemble
of n networks, and going on to n + 1 computes only the nodes that are new. Ruiz and
Verbeek, "Anytime Inference with Distilled Hierarchical Neural Ensembles", AAAI 2021.
"""

import collections
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hne_tf.errors import InputError
from hne_tf.exported.interface import CACHED, StepSignature
from hne_tf.exported.steps import StepRunner, check_images, step_inputs
from hne_tf.exported.uncertainty.stopping import Confidence, Limit, is_number

Clock = Callable[[], float]

# Untimed calls before timed ones: the first of a size are slow.
WARM_UP_CALLS = 3


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model in this process answers.

    Attributes:
      sizes: int `[batch]`, number of leaves in the answer of each image.
      probabilities: float32 `[batch, classes]`.
      elapsed_ms: time since the call that it answers.
    """

    sizes: np.ndarray
    probabilities: np.ndarray
    elapsed_ms: float


class StepTimes:
    """What each step took lately, and hence what it will take; thread-safe.

    Keep one per model and pass it to every session: the sessions add to it. For
    each step and batch size the estimate is the median of the last `window` times.
    Other programs now and then make a step much longer, which nobody can foresee:
    a high quantile would give leaves away in every run, and still be wrong in the
    run that is disturbed. A machine that slows down for longer moves the median.

    A batch size that was never measured is interpolated between its measured
    neighbours; above the largest, time grows in proportion, and below the
    smallest it stays the same, both of which are upper bounds where time is a
    fixed part and a part per image. A step that was never measured takes as long
    as the longest that was: the first, which evaluates a whole network.

    Args:
      window: number of latest times kept for each step and batch size.
    """

    def __init__(self, window: int = 32) -> None:
        self._window = window
        self._lock = threading.Lock()
        self._times_ms: dict[int, dict[int, collections.deque[float]]] = {}

    def measure(
        self,
        runner: StepRunner,
        batch_size: int,
        repeats: int = 32,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Adds the times of warm walks through all steps.

        Args:
          runner: the model.
          batch_size: images per walk.
          repeats: timed walks, after some untimed ones.
          clock: seconds.

        Raises:
          InputError: unless batch size and repeats are 1 or more.
        """
        for name, value in (("batch_size", batch_size), ("repeats", repeats)):
            if value < 1:
                raise InputError(f"{name} must be 1 or more, got {value}")
        images = np.zeros([batch_size, *runner.image_shape], np.uint8)
        for walk in range(-WARM_UP_CALLS, repeats):
            AnytimeSession(runner, images, self if walk >= 0 else None, clock).run()

    def add(self, size: int, batch_size: int, time_ms: float) -> None:
        """Takes note that step number `size` took `time_ms` for `batch_size` images."""
        with self._lock:
            batches = self._times_ms.setdefault(size, {})
            times = batches.setdefault(batch_size, collections.deque(maxlen=self._window))
            times.append(time_ms)

    def estimate_ms(self, size: int, batch_size: int) -> float:
        """What step number `size` will take; infinite as long as nothing was measured."""
        with self._lock:
            if size in self._times_ms:
                return _interpolated(self._times_ms[size], batch_size)
            known = self._times_ms.values()
            return max((_interpolated(times, batch_size) for times in known), default=math.inf)


def _interpolated(times: Mapping[int, Sequence[float]], batch_size: int) -> float:
    """The typical time of a batch size, from the times of some batch sizes."""
    below = max((size for size in times if size <= batch_size), default=None)
    above = min((size for size in times if size >= batch_size), default=None)
    if below is None:
        return _median(times[above])
    if above is None:
        return _median(times[below]) * batch_size / below
    if below == above:
        return _median(times[below])
    share = (batch_size - below) / (above - below)
    return (1 - share) * _median(times[below]) + share * _median(times[above])


def _median(times: Sequence[float]) -> float:
    return sorted(times)[len(times) // 2]


@dataclasses.dataclass(frozen=True)
class _Cohort:
    """Images that have come equally far.

    Attributes:
      size: number of leaves evaluated.
      rows: positions of the images in the session's batch.
      known: what later steps start from, and `probabilities`; each `[images, ...]`.
      leaf_outputs: what each leaf so far gives by itself, each `[images, classes]`.
    """

    size: int
    rows: np.ndarray
    known: Mapping[str, Any]
    leaf_outputs: tuple[np.ndarray, ...] = ()

    def take(self, picked: np.ndarray) -> "_Cohort":
        """The images at some positions of the group."""
        known = {name: np.asarray(value)[picked] for name, value in self.known.items()}
        outputs = tuple(each[picked] for each in self.leaf_outputs)
        return _Cohort(self.size, self.rows[picked], known, outputs)

    def join(self, other: "_Cohort") -> "_Cohort":
        """The images of two groups of one size."""
        known = {name: np.concatenate([self.known[name], other.known[name]]) for name in self.known}
        pairs = zip(self.leaf_outputs, other.leaf_outputs, strict=True)
        outputs = tuple(map(np.concatenate, pairs))
        return _Cohort(self.size, np.concatenate([self.rows, other.rows]), known, outputs)


class AnytimeSession:
    """A batch of images on its way through the leaves.

    Iterating gives `(ensemble_size, probabilities)` after each leaf; `run` goes on
    until a deadline or until the answers are confident enough. Both continue where
    the last one stopped, whether it came to its end or was interrupted by an
    exception, and no node of the tree is computed twice for an image. A session is
    for one thread at a time.

    Args:
      runner: the model.
      images: uint8 `[batch, height, width, channels]`.
      times: what steps took in earlier sessions; this one adds to it. Without it,
        a deadline is kept by what the session has seen itself.
      clock: seconds.

    Raises:
      InputError: for images that the model cannot take.

    Example:
      >>> model = hne.load("models/digits")
      >>> model.warm_up(batch_size=2)
      >>> session = model.session(images)
      >>> session.run(deadline_ms=5).probabilities.shape  # what fits into 5 ms
      (2, 10)
      >>> for size, probabilities in session:  # the other leaves
      ...     best = probabilities.argmax(axis=1)
    """

    def __init__(
        self,
        runner: StepRunner,
        images: Any,
        times: StepTimes | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        images = np.asarray(images)
        check_images(images, runner.image_shape)
        self._runner = runner
        self._times = StepTimes() if times is None else times
        self._clock = clock
        self._needed = _needed(runner.steps)
        self._shape = (len(images), len(runner.class_names))
        # The ensemble of no networks knows nothing.
        uniform = np.full(self._shape, 1 / len(runner.class_names), np.float32)
        known = {"images": images, "probabilities": uniform}
        start = _Cohort(0, np.arange(len(images)), known)
        # By size. A step replaces the tuple at once when it has ended, so that an
        # interrupt at any moment leaves a state to go on from.
        self._groups = (start,)

    @property
    def sizes(self) -> np.ndarray:
        """Number of leaves in the answer of each image, int `[batch]`."""
        sizes = np.empty(self._shape[0], int)
        for group in self._groups:
            sizes[group.rows] = group.size
        return sizes

    @property
    def probabilities(self) -> np.ndarray:
        """The answers so far, float32 `[batch, classes]`; uniform before the first step."""
        probabilities = np.empty(self._shape, np.float32)
        for group in self._groups:
            probabilities[group.rows] = group.known["probabilities"]
        return probabilities

    @property
    def leaf_outputs(self) -> np.ndarray:
        """What each leaf so far gives by itself, logits or probabilities `[batch, n, classes]`.

        Raises:
          InputError: if images have stopped at different sizes.
        """
        if len(self._groups) > 1:
            raise InputError(
                "leaf outputs are those of one size, got images at sizes "
                f"{', '.join(str(group.size) for group in self._groups)}"
            )
        return np.stack(self._groups[0].leaf_outputs, axis=1)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields each ensemble size that all images have newly come to, with their answers.

        After a run that stopped at different sizes, the images behind catch up first.
        """
        while (group := self._groups[0]).size < len(self._runner.steps):
            self._advance(group)
            if len(self._groups) == 1:
                yield group.size + 1, self.probabilities

    def run(
        self,
        *,
        deadline_ms: float | None = None,
        confidence: Confidence | None = None,
        rule: str = "confidence",
        grace: float = 0.05,
    ) -> Prediction:
        """Computes leaf after leaf until one of the limits; without any, all of them.

        Args:
          deadline_ms: time from this call to its answer. A step that would end
            later by the times measured is not started; only the first of all is
            taken in any case, because without it there is no answer.
          confidence: each image stops when it is at least as sure as this: one
            threshold, or one for each size from 1 to N - 1.
          rule: what says how sure it is, one of `stopping.RULES`; by default the highest
            probability.
          grace: share of the deadline by which an answer may be late. The times of
            a step scatter by some percent, and without any grace every deadline
            that is just long enough loses a leaf; 0 for deadlines that are hard.

        Returns:
          The answer of each image, also of those that had stopped before.

        Raises:
          InputError: for a deadline that is not above 0, a threshold that does not
            lie in (0, 1], an unknown rule, or a negative grace.
        """
        started = self._clock()
        if not is_number(grace) or not grace >= 0:
            raise InputError(f"grace must be 0 or more, got {grace!r}")
        end = started + (1 + grace) * checked_deadline(deadline_ms) / 1000
        limit = Limit.of(confidence, rule, len(self._runner.steps))
        while (moves := self._next(end, limit)) is not None:
            self._advance(*moves)
        elapsed_ms = 1000 * (self._clock() - started)
        return Prediction(self.sizes, self.probabilities, elapsed_ms)

    def is_sure(self, limit: Limit) -> bool:
        """Whether all images can stop where they are."""
        return all(
            group.size == len(self._runner.steps) or _stopping(group, limit).all()
            for group in self._groups
        )

    def _next(self, end: float, limit: Limit | None) -> tuple[_Cohort, np.ndarray | None] | None:
        """The group to go on with and which of its images, the furthest behind first."""
        for group in self._groups:
            if group.size == len(self._runner.steps):
                continue
            picked = _unsure(group, limit)
            count = len(group.rows) if picked is None else len(picked)
            if count and (group.size == 0 or self._fits(group.size + 1, count, end)):
                return group, picked
        return None

    def _fits(self, size: int, batch_size: int, end: float) -> bool:
        if end == math.inf:
            return True
        return self._clock() + self._times.estimate_ms(size, batch_size) / 1000 <= end

    def _advance(self, group: _Cohort, picked: np.ndarray | None = None) -> None:
        """Takes the picked images of a group, all by default, one leaf further."""
        started = self._clock()
        moving = group if picked is None else group.take(picked)
        arrived = self._computed(moving)
        groups = {other.size: other for other in self._groups if other is not group}
        if arrived.size in groups:
            arrived = arrived.join(groups[arrived.size])
        groups[arrived.size] = arrived
        if moving is not group:
            groups[group.size] = group.take(np.delete(np.arange(len(group.rows)), picked))
        self._groups = tuple(groups[size] for size in sorted(groups))
        # Moving images between groups is part of what a step costs.
        time_ms = 1000 * (self._clock() - started)
        self._times.add(arrived.size, len(moving.rows), time_ms)

    def _computed(self, group: _Cohort) -> _Cohort:
        step = self._runner.steps[group.size]
        outputs = self._runner.run(step, step_inputs(step, group.known))
        probabilities = np.asarray(outputs["probabilities"])
        # Beside the sum may lie the answer kept, see `running_sum_width`.
        added, classes = np.asarray(outputs["running_sum"]), self._shape[1]
        added = added[:, :classes]
        if step.size > 1 and self._runner.average.removeprefix(CACHED) != "last":
            added = added - np.asarray(group.known["running_sum"])[:, :classes]
        known = {**group.known, **outputs, "probabilities": probabilities}
        size = group.size + 1
        needed = {name: known[name] for name in self._needed[size]}
        return _Cohort(size, group.rows, needed, (*group.leaf_outputs, added))


def _needed(steps: Sequence[StepSignature]) -> list[frozenset[str]]:
    """By size, what is still needed: for the answer, and by some later step."""
    answer = frozenset({"probabilities"})
    needed = [answer]
    for step in reversed(steps):
        outputs = {"running_sum", *step.caches}
        carried = {"running_sum"} if step.size > 1 else set()
        needed.append((needed[-1] - outputs) | {step.starts_from} | carried | answer)
    return needed[::-1]


def _unsure(group: _Cohort, limit: Limit | None) -> np.ndarray | None:
    """Which images of a group have to go on; None for all."""
    if limit is None:
        return None
    stops = _stopping(group, limit)
    return np.flatnonzero(~stops) if stops.any() else None


def _stopping(group: _Cohort, limit: Limit) -> np.ndarray:
    """Which images of a group that is not at the last leaf stop, bool `[images]`."""
    if group.size == 0:
        return np.zeros(len(group.rows), bool)
    return limit.stops(group.known["probabilities"], np.stack(group.leaf_outputs, axis=1))


def checked_deadline(deadline_ms: float | None) -> float:
    """A deadline in milliseconds, infinite for None.

    Raises:
      InputError: for a deadline that is not above 0.
    """
    if deadline_ms is None:
        return math.inf
    if not is_number(deadline_ms) or not deadline_ms > 0:
        raise InputError(f"deadline_ms must be a number above 0, got {deadline_ms!r}")
    return deadline_ms
