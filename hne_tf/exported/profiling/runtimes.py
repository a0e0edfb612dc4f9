"""The runtimes of a version, TensorFlow and LiteRT, and what is best for each."""

import dataclasses
import math
from collections.abc import Sequence

from hne_tf import hardware
from hne_tf.exported.measurements import LiteRTLatency, MeasuredLatency, relative_time
from hne_tf.exported.model import ExportedModel, load
from hne_tf.exported.profiling import latency
from hne_tf.exported.profiling.latency import Subject
from hne_tf.exported.versions import LITERT


def litert_model(model: ExportedModel, threads: int | None = None) -> ExportedModel | None:
    """The TFLite file in a version's folder; None without one.

    Args:
      model: a version, or anything else that is published.
      threads: that compute the file.

    Raises:
      InputError: for a file that is damaged.
    """
    file = model.path / LITERT
    return load(file, threads) if file.is_file() else None


def measure(
    version: ExportedModel,
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[int] = (),
    runs: int = 100,
) -> tuple[MeasuredLatency, LiteRTLatency | None]:
    """Times a version, and the TFLite file in its folder if there is one, in turns.

    Args:
      version: its folder, which need not be published yet.
      batch_sizes: images per call.
      threads: numbers of threads that each have processes of their own, see
        `latency.measure_together`. Without them TensorFlow is measured as this process
        has it, and LiteRT with one thread and with all cores.
      runs: timed calls of each.

    Raises:
      InputError: for a model that cannot be loaded or called.
    """
    if threads:
        subjects = subjects_of(version, threads)
        measured = latency.measure_together(subjects, batch_sizes, runs)
        return measured[0], chosen(measured[1]) if measured[1:] else None
    models = [version]
    if (version.path / LITERT).is_file():
        models += [litert_model(version, count) for count in sorted({1, hardware.cores()})]
    first, *others = latency.measure_all(models, batch_sizes, runs)
    if not others:
        return first, None
    more = tuple(row for each in others[1:] for row in each.measurements)
    return first, chosen(dataclasses.replace(others[0], other_threads=more))


def subjects_of(model: ExportedModel, threads: Sequence[int]) -> list[Subject]:
    """What is measured of a model: the model, and the TFLite file in its folder."""
    file = litert_model(model)
    return [
        Subject(each, tuple(sorted({*threads, each.default_threads})))
        for each in (model, file)
        if each is not None
    ]


def chosen(measured: MeasuredLatency) -> LiteRTLatency:
    """The latencies of a TFLite file with its best number of threads."""
    return LiteRTLatency(best_threads(measured), measured)


def best_threads(measured: MeasuredLatency) -> int:
    """The number of threads that a server gives a call of LiteRT.

    Threads that a call takes are no longer there for other calls. A second one pays
    for itself alone where the server is idle, and costs where it is loaded. Halfway, k
    times the threads must bring the time below 1 / sqrt(k) of what it was.
    """
    rows = list(measured.rows())
    threads = {row.threads for row in (*rows, *measured.other_threads)}
    return min(
        sorted(threads),
        key=lambda count: relative_time(measured.rows(count), rows) * math.sqrt(count),
    )
