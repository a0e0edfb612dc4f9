"""What a published model was measured to be, as its manifest holds it."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hne_tf.errors import InputError
from hne_tf.exported import typed_json
from hne_tf.exported.typed_json import Count, Name, Positive, Share, Threshold, Whole


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an answer costs.

    Attributes:
      multiply_adds: of convolutions and classifiers, for one image; not the additions
        of biases and shortcuts.
      parameters: numbers that a device holds once batch norms are folded.
    """

    multiply_adds: Whole
    parameters: Whole

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.multiply_adds + other.multiply_adds, self.parameters + other.parameters)


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Share of right answers of each ensemble size.

    Attributes:
      split: name of the split that was answered, e.g. `"test"`.
      examples: number of its images.
      by_size: accuracy by ensemble size.
    """

    split: Name
    examples: Count
    by_size: Mapping[Count, Share]


@dataclasses.dataclass(frozen=True)
class StoppingPoint:
    """Early stopping at one target cost, see `evaluation.early_stopping.curve`."""

    target_multiply_adds: Positive
    thresholds: tuple[Threshold, ...]
    multiply_adds: Positive
    mean_size: Positive
    accuracy: Share
    anytime_accuracy: Share


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Thresholds for mean costs per image.

    Attributes:
      rule: how sure an image is, one of `exported.uncertainty.stopping.RULES`.
      split: name of the split that the thresholds are fitted on.
      examples: number of its images.
      curve: a point per target cost; empty for a model of one leaf.
    """

    split: Name
    examples: Count
    curve: tuple[StoppingPoint, ...]
    rule: Name = "confidence"

    @classmethod
    def from_json(cls, values: Any) -> "EarlyStopping":
        """Reads what `evaluation.early_stopping.calibrated` gives."""
        return typed_json.decode(cls, values, "early_stopping")

    def thresholds(self, multiply_adds: float) -> list[float]:
        """The thresholds for a mean cost per image.

        Args:
          multiply_adds: mean per image that is allowed.

        Returns:
          Those of the largest target that is not above it: a threshold for each size
          from 1 to N - 1, for `AnytimeSession.run(confidence=…, rule=…)`.

        Raises:
          InputError: if no target is as low.
        """
        fitting = [row for row in self.curve if row.target_multiply_adds <= multiply_adds]
        if not fitting:
            lowest = min((row.target_multiply_adds for row in self.curve), default=float("inf"))
            raise InputError(
                f"multiply_adds must be at least {lowest:,.10g}, the lowest target of the "
                f"manifest, got {multiply_adds:,.10g}"
            )
        return list(max(fitting, key=lambda row: row.target_multiply_adds).thresholds)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Milliseconds of warm calls of a signature, as percentiles.

    Attributes:
      signature: its name.
      batch_size: images per call.
      runs: timed calls.
      p50_ms: median.
      p95_ms: 95th percentile.
      p99_ms: 99th percentile.
      threads: that computed; None in the oldest manifests.
      side_by_side: whether each operation had one of the threads, and operations that do
        not wait for each other ran at the same time. Otherwise all threads share each.
    """

    signature: Name
    batch_size: Count
    runs: Count
    p50_ms: Positive
    p95_ms: Positive
    p99_ms: Positive
    threads: Count | None = None
    side_by_side: bool = False


@dataclasses.dataclass(frozen=True)
class MeasuredLatency:
    """Latencies of a model on one machine.

    Attributes:
      hardware: see `hardware.describe`.
      measurements: with the number of threads that computes the model unless told
        otherwise; a row per signature and batch size. Side by side if that is faster.
      other_threads: with other numbers of threads, or the slower way to use them.
      onednn: whether these rows are with oneDNN, which is faster for the model then;
        None if it was not measured with and without.
      other_onednn: of all numbers of threads, with the slower setting.
    """

    hardware: Mapping[str, Any]
    measurements: tuple[Measurement, ...]
    other_threads: tuple[Measurement, ...] = ()
    onednn: bool | None = None
    other_onednn: tuple[Measurement, ...] = ()

    @property
    def side_by_side(self) -> bool:
        """Whether `measurements` are with one thread for each operation."""
        return any(row.side_by_side for row in self.measurements)

    def rows(
        self,
        threads: int | None = None,
        onednn: bool | None = None,
        side_by_side: bool | None = None,
    ) -> Iterator[Measurement]:
        """The rows of a setting.

        Args:
          threads: that compute; the default number for None.
          onednn: whether with oneDNN; the faster setting for None.
          side_by_side: whether each operation has one thread; the faster way for None,
            or the only one.
        """
        if onednn not in (None, self.onednn):
            found = self.other_onednn
        elif threads is None:
            found = self.measurements
        else:
            found = (*self.measurements, *self.other_threads)
        chosen = [row for row in found if threads in (None, row.threads)]
        wanted = self.side_by_side if side_by_side is None else side_by_side
        fitting = [row for row in chosen if row.side_by_side == wanted]
        yield from fitting or (chosen if side_by_side is None else ())


@dataclasses.dataclass(frozen=True)
class Storage:
    """What graph and weights take, without the manifest.

    Attributes:
      bytes: on disk.
      gzip_bytes: compressed, which is how apps travel, and where pruned or clustered
        weights gain.
    """

    bytes: Count
    gzip_bytes: Count


@dataclasses.dataclass(frozen=True)
class LiteRTLatency:
    """Latencies of the TFLite file in a version's folder, computed by LiteRT.

    Attributes:
      threads: for one call, found best, see `profiling.runtimes.best_threads`.
      latency: with that number and others.
    """

    threads: Count
    latency: MeasuredLatency

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """A row per signature and batch size, with the best number of threads."""
        return tuple(self.latency.rows(self.threads))


def relative_time(rows: Iterable[Measurement], others: Iterable[Measurement]) -> float:
    """How long `rows` take as a part of the time of `others`.

    Returns:
      The geometric mean of the ratios of medians, over signatures and batch sizes that
      both have; NaN if there are none.
    """
    medians = {(row.signature, row.batch_size): row.p50_ms for row in others}
    ratios = [
        row.p50_ms / medians[row.signature, row.batch_size]
        for row in rows
        if (row.signature, row.batch_size) in medians
    ]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan
