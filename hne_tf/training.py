"""The training loop: distributed, resumable, several steps per host call."""

import contextlib
import math
import signal
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import ml_collections
import tensorflow as tf

from hne_tf import build, checkpoints
from hne_tf.cluster import Cluster
from hne_tf.config import check_numbers
from hne_tf.data import DataSet, load
from hne_tf.distribution import accelerated, strategy_of
from hne_tf.errors import InputError, InterruptedRunError
from hne_tf.evaluation import inference, measure
from hne_tf.metrics import EnsembleAccuracy
from hne_tf.run_log import RunLog
from hne_tf.schedule import Schedule
from hne_tf.weight_average import WeightAverage
from hne_tf.workdir import Workdir
from hne_tf.workers import Workers, lost_workers_told


def train(
    config: ml_collections.ConfigDict,
    workdir: Workdir,
    restart: bool = False,
    report: Callable[[str], None] = print,
) -> int:
    """Trains to the end of the schedule, or until SIGTERM or SIGINT.

    A workdir that holds part of the same run is continued from its newest
    sound checkpoint; with `training.deterministic` the end is the same, bit
    for bit, as without the interruption.

    With `TF_CONFIG` for several workers, each calls this, takes its part of
    every global batch, and returns at the same step. The first of them, the
    chief, writes the workdir, from which all restore.

    Args:
      config: settings, see `config.default()`.
      workdir: where the run is kept.
      restart: moves an older run in `workdir` aside instead of continuing it.
      report: gets a line for whatever the user should know.

    Returns:
      The step reached.

    Raises:
      InputError: for settings that break a rule or a workdir of another run.
      InterruptedRunError: if one of several workers was lost or asked to stop.
    """
    check_numbers(config)
    build.tree(config)
    build.architecture(config)
    config = _in_its_form(config, workdir, restart)
    cluster = Cluster.from_environment()
    with lost_workers_told(cluster):
        # Devices come first: loading data starts TensorFlow, which fixes them.
        strategy = strategy_of(
            cluster, config.distribution.logical_devices, config.training.batch_size
        )
        data_set = load(config.data)
        schedule = Schedule.of(config, data_set.examples("train"))
        if config.training.deterministic:
            tf.config.experimental.enable_op_determinism()
        keras.utils.set_random_seed(config.seed)
        run = _Run(config, data_set, schedule, strategy)
        step = _to_its_end(run, Workers(cluster, strategy), workdir, restart, report)
    if corrupt := data_set.skipped:
        report(f"{len(corrupt)} corrupt images were skipped, the first: {', '.join(corrupt[:10])}")
    if step == schedule.total:
        report(f"trained {schedule.total} steps; the run is in {workdir.path}")
        return step
    stopped = f"stopped at step {step} of {schedule.total}; the same command goes on from there"
    if cluster.workers > 1:
        # To what started the workers, success of one would be the end of the run.
        raise InterruptedRunError(stopped)
    report(stopped)
    return step


def _in_its_form(
    config: ml_collections.ConfigDict, workdir: Workdir, restart: bool
) -> ml_collections.FrozenConfigDict:
    """The settings with `training.factory` decided: a run goes on in the form it began in."""
    if workdir.config_path.exists() and not restart:
        # "auto" in a folder is of a run older than the choice, and branched.
        grouped = build.is_grouped(workdir.read_config(), accelerated=False)
    else:
        grouped = build.is_grouped(config, accelerated())
    decided = ml_collections.ConfigDict(config.to_dict())
    decided.training.factory = "grouped" if grouped else "branched"
    return ml_collections.FrozenConfigDict(decided)


class _Run:
    """What a run consists of, built under its strategy."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        data_set: DataSet,
        schedule: Schedule,
        strategy: tf.distribute.Strategy,
    ) -> None:
        self.config = config
        self.data_set = data_set
        self.schedule = schedule
        self.strategy = strategy
        self.sizes = build.tree(config).sizes
        with strategy.scope():
            replicas = strategy.num_replicas_in_sync
            self.model = build.training_model(
                config, data_set.spec, accelerated(), replicas, config.training.precision
            )
            self.optimizer = sgd(config, schedule)
            self.optimizer.build(self.model.trainable_variables)
            self.loss = keras.metrics.Mean(name="loss")
            self.accuracy = EnsembleAccuracy(self.sizes, config.objective.average)
            self._average = self._weight_average(replicas)
            self._gradient_sums = self._zeros_for_sums(replicas)
        self.objective = build.objective(
            config, schedule.steps_per_epoch, self.optimizer.iterations
        )
        self.checkpoint = tf.train.Checkpoint(model=self.model, optimizer=self.optimizer)
        answering = self.model
        if self._average:
            answering = self.checkpoint.average = self._average.model
        self._steps = tf.function(self._run_steps)
        self._predict = inference(answering)

    def batches(self, start_step: int) -> Iterator[Any]:
        """Global batches from `start_step` on, split over the replicas.

        A machine reads and decodes only what its own replicas take.
        """
        batch_size = self.config.training.batch_size

        def part(context: tf.distribute.InputContext) -> tf.data.Dataset:
            batches = self.data_set.train_batches(
                batch_size=batch_size,
                start_step=start_step,
                total_steps=self.schedule.total,
                seed=self.config.seed,
                shard=(context.input_pipeline_id, context.num_input_pipelines),
            )
            per_replica = context.get_per_replica_batch_size(batch_size)
            return batches.rebatch(per_replica, drop_remainder=True)

        return iter(self.strategy.distribute_datasets_from_function(part))

    def take_steps(self, batches: Iterator[Any], count: int) -> dict[str, float]:
        """Takes `count` steps; returns their mean loss and accuracies."""
        self.loss.reset_state()
        self.accuracy.reset_state()
        self._steps(batches, tf.constant(count))
        accuracies = {name: float(value) for name, value in self.accuracy.result().items()}
        return {"loss": float(self.loss.result()), **accuracies}

    def validate(self) -> dict[str, float]:
        """Accuracy of every size on the validation split, of averaged weights if there are."""
        accuracy = EnsembleAccuracy(self.sizes, self.config.objective.average)
        batches = self.data_set.evaluation_batches("validation", self.config.training.batch_size)
        measured = measure(self._predict, batches, [accuracy])
        return {f"validation_{name}": value for name, value in measured.items()}

    def save(self, workdir: Workdir, step: int) -> None:
        """Writes the checkpoint of `step`."""
        keep = self.config.training.keep_checkpoints
        checkpoints.save(self.checkpoint, workdir.checkpoints, step, keep)

    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return float(self.optimizer.learning_rate)

    def _weight_average(self, replicas: int) -> WeightAverage | None:
        momentum = self.config.training.ema_momentum
        if not momentum:
            return None
        average = build.training_model(self.config, self.data_set.spec, accelerated(), replicas)
        return WeightAverage(self.model, average, momentum)

    def _zeros_for_sums(self, replicas: int) -> list[keras.Variable]:
        """Variables for sums of gradients over the parts of a batch; none for a whole one.

        Raises:
          InputError: if the batch does not divide into the parts.
        """
        parts, batch_size = self.config.training.accumulate_steps, self.config.training.batch_size
        if parts < 1 or batch_size % (parts * replicas):
            raise InputError(
                f"training.accumulate_steps must divide the {batch_size // replicas} images that "
                f"a device gets of a batch, got {parts}"
            )
        if parts == 1:
            return []
        return [
            keras.Variable(tf.zeros(variable.shape), trainable=False, name="gradient_sum")
            for variable in self.model.trainable_variables
        ]

    def _run_steps(self, batches, count):
        for _ in tf.range(count):
            batch = next(batches)
            if self._gradient_sums:
                for part in tf.range(self.config.training.accumulate_steps):
                    self.strategy.run(self._replica_part, args=(*batch, part))
                self.strategy.run(self._replica_end)
            else:
                self.strategy.run(self._replica_step, args=batch)

    def _replica_step(self, images, labels):
        """One step on a replica's part of the batch."""
        self._apply(self._gradients(images, labels))

    def _replica_part(self, images, labels, part):
        """Adds the gradients of one of the parts that a replica takes one after the other."""
        # Every so manieth image, so that a part is the same whatever the number of devices,
        # each of which gets a stretch of the batch.
        rows = slice(part, None, self.config.training.accumulate_steps)
        gradients = self._gradients(images[rows], labels[rows])
        for total, gradient in zip(self._gradient_sums, gradients, strict=True):
            total.assign_add(gradient)

    def _replica_end(self):
        """The step that all parts add up to."""
        # What is read from a mirrored variable has no device, which the reduction asks for.
        self._apply([tf.identity(total) for total in self._gradient_sums])
        for total in self._gradient_sums:
            total.assign(tf.zeros_like(total))

    def _gradients(self, images, labels):
        """Gradients whose sum over all parts and replicas is of the global batch's mean."""
        training = self.config.training
        parts = training.accumulate_steps * self.strategy.num_replicas_in_sync
        with tf.GradientTape() as tape:
            leaf_logits = self.model(images, training=True)
            per_example = self.objective.call(labels, leaf_logits)
            loss = tf.reduce_sum(per_example) / training.batch_size
            if self.model.losses:
                loss += tf.add_n(self.model.losses) / parts
        self.loss.update_state(per_example)
        self.accuracy.update_state(labels, leaf_logits)
        return tape.gradient(loss, self.model.trainable_variables)

    def _apply(self, gradients):
        # The optimiser sums gradients over replicas.
        self.optimizer.apply(gradients, self.model.trainable_variables)
        if self._average:
            self._average.update(self.optimizer.iterations)


def sgd(config: ml_collections.ConfigDict, schedule: Schedule) -> keras.Optimizer:
    """SGD with Nesterov momentum, linear warm-up and cosine decay to 0.

    Raises:
      InputError: for a learning rate of 0 or below, a momentum outside [0, 1)
        or a warm-up below 0 or as long as the run.
    """
    section = config.optimizer
    warmup = round(section.warmup_epochs * schedule.steps_per_epoch)
    if not section.learning_rate > 0:
        raise InputError(f"optimizer.learning_rate must be above 0, got {section.learning_rate}")
    if not 0 <= section.momentum < 1:
        raise InputError(f"optimizer.momentum must lie in [0, 1), got {section.momentum}")
    if not 0 <= warmup < schedule.total:
        raise InputError(
            "optimizer.warmup_epochs must be 0 or more and shorter than the run, "
            f"got {section.warmup_epochs}"
        )
    rate = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else section.learning_rate,
        decay_steps=schedule.total - warmup,
        warmup_target=section.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    return keras.optimizers.SGD(rate, momentum=section.momentum, nesterov=section.momentum > 0)


def _to_its_end(
    run: _Run,
    workers: Workers,
    workdir: Workdir,
    restart: bool,
    report: Callable[[str], None],
) -> int:
    """Trains from the step that the workdir holds; returns the step reached.

    Raises:
      InputError: for a workdir of another run, or one that the workers do not share.
    """
    step = None
    if workers.cluster.is_chief:
        workdir.claim(run.config, restart)
        step = _resume(run, workdir, report)
    # Only the chief writes, so the others see what it has begun or cleared away.
    workers.wait()
    if not workers.cluster.is_chief:
        step = checkpoints.restore_newest(run.checkpoint, workdir.checkpoints, report)
    if not workers.agree(-1 if step is None else step):
        raise InputError(
            f"all workers must see the same --workdir, got {workdir.path}, in which worker "
            f"{workers.cluster.index} found {'nothing' if step is None else f'step {step}'}"
        )
    if step:
        report(f"resumed at step {step} of {run.schedule.total}")
    log = RunLog(workdir, run.schedule, (run.sizes[0], run.sizes[-1]))
    with log.opened_at(step) if workers.cluster.is_chief else contextlib.nullcontext():
        step = _loop(run, workers, workdir, step, log)
    # A worker that left while the chief still writes would be taken for dead.
    workers.wait()
    return step


def _resume(run: _Run, workdir: Workdir, report: Callable[[str], None]) -> int:
    """Restores the newest sound checkpoint, or begins with one of step 0.

    Raises:
      InputError: if the workdir has lost its checkpoints.
    """
    step = checkpoints.restore_newest(run.checkpoint, workdir.checkpoints, report)
    if step is None:
        # The first checkpoint is older than the first record, so they were lost.
        if workdir.metrics_path.exists():
            raise InputError(
                f"{workdir.path} has trained before but {workdir.checkpoints} is empty; "
                "use --restart to move the run aside and start afresh"
            )
        run.save(workdir, 0)
        return 0
    workdir.drop_metrics_after(step)
    return step


def _loop(run: _Run, workers: Workers, workdir: Workdir, step: int, log: RunLog) -> int:
    """Takes steps until the schedule ends or a signal asks to stop; returns the step reached."""
    schedule = run.schedule
    is_chief = workers.cluster.is_chief
    batches = run.batches(step)
    with _StopRequest() as stop:
        while step < schedule.total and not workers.any(stop.requested):
            target = schedule.next_stop(step)
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
                record |= run.validate()
            if is_chief:
                if schedule.is_due(step, schedule.checkpoint_every):
                    run.save(workdir, step)
                log.add(step, record)
        if is_chief and step not in checkpoints.steps(workdir.checkpoints):
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
