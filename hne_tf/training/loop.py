"""The training loop: distributed, resumable, several steps per host call."""

import contextlib
import math
import signal
import time
import types
from collections.abc import Callable
from typing import Any

import ml_collections

from hne_tf.data import load
from hne_tf.data.data_set import LoadedData
from hne_tf.errors import InputError, InterruptedRunError
from hne_tf.training import backends, build
from hne_tf.training.backends.backend import Backend, BackendRun
from hne_tf.training.config import check
from hne_tf.training.fine_tuning.given import given
from hne_tf.training.machines.cluster import Cluster
from hne_tf.training.machines.workers import Workers, lost_workers_told
from hne_tf.training.run_log import RunLog
from hne_tf.training.schedule import Schedule
from hne_tf.training.workdir import Workdir


def train(
    config: ml_collections.ConfigDict,
    workdir: Workdir,
    restart: bool = False,
    report: Callable[[str], None] = print,
) -> int:
    """Trains to the end of the schedule.

    A workdir that holds part of the same run is continued from its newest
    sound checkpoint; with `training.deterministic` the end is the same, bit
    for bit, as without the interruption. What of the machine decides the bits is
    kept in the workdir, and a change of it reported. SIGTERM and SIGINT save and end it
    early.

    Seeds and determinism are the caller's again when it returns; threads are set only if
    `distribution.operation_threads` asks for a number.

    With `TF_CONFIG` for several workers, each calls this, takes its part of
    every global batch, and returns at the same step. The first of them, the
    chief, writes the workdir, from which all restore.

    Args:
      config: settings, see `config.default()`.
      workdir: where the run is kept.
      restart: moves an older run in `workdir` aside instead of continuing it.
      report: gets a line for whatever the user should know.

    Returns:
      The step reached, the last of the schedule.

    Raises:
      InputError: for settings that break a rule or a workdir of another run.
      InterruptedRunError: after SIGTERM or SIGINT, or if one of several workers was lost.
    """
    check(config)
    build.check_model(config)
    backend = backends.current()
    config = _in_its_form(config, workdir, restart, backend.accelerated())
    cluster = Cluster.from_environment()
    with lost_workers_told(cluster):
        # Devices come first: loading data starts TensorFlow, which fixes them.
        devices = backend.devices_of(config, cluster)
        data_set = load(config.data)
        for line in data_set.found:
            report(line)
        schedule = Schedule.of(config, data_set.examples("train"))
        with backend.seeded(config.seed, config.training.deterministic):
            config, model = given(config, data_set.spec, workdir, restart, report)
            run = backend.run(config, data_set.spec, schedule, devices, model)
            workers = Workers(cluster, devices)
            step = _to_its_end(backend, run, data_set, workers, workdir, restart, report)
    if corrupt := data_set.skipped:
        report(f"{len(corrupt)} corrupt images were skipped, the first: {', '.join(corrupt[:10])}")
    if step < schedule.total:
        # To what started it, success would be the end of the run.
        raise InterruptedRunError(
            f"stopped at step {step} of {schedule.total}; the same command goes on from there"
        )
    report(f"trained {schedule.total} steps; the run is in {workdir.path}")
    return step


def _in_its_form(
    config: ml_collections.ConfigDict, workdir: Workdir, restart: bool, accelerated: bool
) -> ml_collections.FrozenConfigDict:
    """The settings with `training.factory` decided: a run goes on in the form it began in."""
    if workdir.config_path.exists() and not restart:
        # "auto" in a folder is of a run older than the choice, and branched.
        grouped = build.is_grouped(workdir.read_config(), accelerated=False)
    else:
        grouped = build.is_grouped(config, accelerated)
    decided = ml_collections.ConfigDict(config.to_dict())
    decided.training.factory = "grouped" if grouped else "branched"
    return ml_collections.FrozenConfigDict(decided)


def _to_its_end(
    backend: Backend,
    run: BackendRun,
    data_set: LoadedData,
    workers: Workers,
    workdir: Workdir,
    restart: bool,
    report: Callable[[str], None],
) -> int:
    """Trains from the step that the workdir holds; returns the step reached.

    Raises:
      InputError: for a workdir of another run, or one that the workers do not share.
    """
    if not workers.cluster.is_chief:
        return _from_its_step(backend, run, data_set, workers, workdir, None, report)
    workdir.claim(run.config, restart)
    with workdir.in_use():
        workdir.keep_data(data_set.record)
        backend.keep_arithmetic(workdir, report)
        step = _resume(run, workdir, report)
        return _from_its_step(backend, run, data_set, workers, workdir, step, report)


def _from_its_step(
    backend: Backend,
    run: BackendRun,
    data_set: LoadedData,
    workers: Workers,
    workdir: Workdir,
    step: int | None,
    report: Callable[[str], None],
) -> int:
    """Trains from the step that the chief has restored; returns the step reached."""
    # Only the chief writes, so the others see what it has begun or cleared away.
    workers.wait()
    if not workers.cluster.is_chief:
        step = run.restore(workdir, report)
    if not workers.agree(-1 if step is None else step):
        raise InputError(
            f"all workers must see the same --workdir, got {workdir.path}, in which worker "
            f"{workers.cluster.index} found {'nothing' if step is None else f'step {step}'}"
        )
    if step:
        report(f"resumed at step {step} of {run.schedule.total}")
    log = RunLog(workdir, run.schedule, (run.sizes[0], run.sizes[-1]), backend.events)
    with log.opened_at(step) if workers.cluster.is_chief else contextlib.nullcontext():
        step = _loop(run, data_set, workers, workdir, step, log)
    # A worker that left while the chief still writes would be taken for dead.
    workers.leave()
    return step


def _resume(run: BackendRun, workdir: Workdir, report: Callable[[str], None]) -> int:
    """Restores the newest sound checkpoint, or begins with one of step 0.

    Raises:
      InputError: if the workdir has lost its checkpoints.
    """
    step = run.restore(workdir, report)
    if step is None:
        # The first checkpoint is older than the first record, so they were lost.
        if workdir.metrics_path.exists():
            raise InputError(
                f"{workdir.path} has trained before but {workdir.checkpoints} is empty; "
                "use --restart to move the run aside and start afresh"
            )
        run.start()
        run.save(workdir, 0)
        return 0
    workdir.drop_metrics_after(step)
    return step


def _loop(
    run: BackendRun,
    data_set: LoadedData,
    workers: Workers,
    workdir: Workdir,
    step: int,
    log: RunLog,
) -> int:
    """Takes steps until the schedule ends or a signal asks to stop; returns the step reached."""
    schedule = run.schedule
    is_chief = workers.cluster.is_chief
    batches = run.batches(data_set, step)
    # Of this process: a damaged checkpoint of a step is no reason not to save it again.
    saved = step
    with _StopRequest() as stop:
        while step < schedule.total and not workers.any(stop.requested):
            run.prepare(step)
            target = run.next_stop(step)
            started = time.perf_counter()
            record = run.take_steps(batches, target - step)
            seconds = time.perf_counter() - started
            if not math.isfinite(record["loss"]):
                raise InputError(
                    f"the loss must stay finite, got {record['loss']} by step {target}; "
                    "start afresh with a lower optimizer.learning_rate"
                )
            record["images_per_s"] = (target - step) * run.config.training.batch_size / seconds
            step = target
            record["learning_rate"] = run.learning_rate()
            if schedule.is_due(step, schedule.validate_every):
                record |= run.validate(data_set)
            if is_chief:
                if schedule.is_due(step, schedule.checkpoint_every):
                    run.save(workdir, step)
                    saved = step
                log.add(step, record)
        if is_chief and step != saved:
            run.save(workdir, step)
    return step


class _StopRequest:
    """Turns SIGTERM and SIGINT into a wish to stop after the steps under way."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: types.FrameType | None) -> None:
        self.requested = True
