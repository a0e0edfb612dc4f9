"""One training run: its model and optimiser under a strategy, and the steps that they take."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import ml_collections
import tensorflow as tf

from hne_tf.data.pipeline import DataSet
from hne_tf.evaluation.evaluation import inference
from hne_tf.evaluation.measuring import measure
from hne_tf.image_spec import ImageSpec
from hne_tf.metrics import EnsembleAccuracy
from hne_tf.models.ensemble import Ensemble, TreeEnsemble
from hne_tf.training import build, checkpoints, optimizer
from hne_tf.training.backends.fused_sgd import FusedSGD
from hne_tf.training.backends.shared_nodes import SharedNodes
from hne_tf.training.fine_tuning import earlier_run, freezing
from hne_tf.training.fine_tuning.given import GivenModel
from hne_tf.training.fine_tuning.rates import set_block_rates
from hne_tf.training.machines.devices import accelerated, check_kernels
from hne_tf.training.schedule import Schedule
from hne_tf.training.weight_average import WeightAverage
from hne_tf.training.workdir import Workdir

# Nodes that take longer to trace one by one than all steps of most runs take to call them.
_MANY_NODES = 8


class TrainingRun:
    """What a run consists of, built under its strategy.

    Args:
      config: settings.
      images: shape, classes and normalisation of the images.
      schedule: the run's steps.
      strategy: devices that take them.
      given: the Keras model that it is cut from, if it is.

    Raises:
      InputError: for settings that break a rule.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        images: ImageSpec,
        schedule: Schedule,
        strategy: tf.distribute.Strategy,
        given: GivenModel | None = None,
    ) -> None:
        self.config = config
        self.images = images
        self.schedule = schedule
        self.strategy = strategy
        self._given = given
        if config.training.start_from:
            earlier_run.check(config.training.start_from)
        self.sizes = build.tree(config).sizes
        with strategy.scope():
            replicas = strategy.num_replicas_in_sync
            self.model = build.training_model(
                config, images, accelerated(), replicas, config.training.precision
            )
            check_kernels(self.model)
            self.optimizer = optimizer.optimizer(config, schedule)
            self._variables = list(self.model.trainable_variables)
            self.optimizer.build(self._variables)
            rates = freezing.block_rates(config, self.model.tree.blocks)
            set_block_rates(self.optimizer, self.model, rates)
            self._shares = _shares(self.model, replicas)
            if self._shares and set(rates) == {1.0} and isinstance(self.optimizer, FusedSGD):
                self.optimizer.owners = _owners(self.model)
            self.loss = keras.metrics.Mean(name="loss")
            self.accuracy = EnsembleAccuracy(self.sizes, config.objective.average)
            self.accuracy.build(self.model.output_shape)
            self._average = self._weight_average(replicas)
        self._own_metrics = build.metrics(config)
        # After the model, whose fresh weights are the same with any objective.
        self.objective = build.objective(config, schedule.steps_per_epoch)
        if hasattr(self.objective, "iterations"):
            self.objective.iterations = self.optimizer.iterations
        self.checkpoint = tf.train.Checkpoint(model=self.model, optimizer=self.optimizer)
        with strategy.scope():
            if adversary := self.model.build_adversary(self.objective):
                self._variables += adversary.trainable_variables
                self.checkpoint.adversary = list(adversary.trainable_variables)
                self.checkpoint.adversary_optimizer = adversary.optimizer
            self._adversary = adversary
            self._gradient_sums = self._zeros_for_sums(build.batch_parts(config, replicas))
        if states := _random_states(self.model):
            # Of dropout and its like, which Keras leaves out.
            self.checkpoint.random_states = states
        answering = self.model
        if self._average:
            answering = self.checkpoint.average = self._average.model
        self._freezing = freezing.of(config, self.model, schedule)
        self.prepare(0)
        self._predict = inference(answering)

    def next_stop(self, step: int) -> int:
        """The step at which the host is needed next, after `step`."""
        return int(min(self.schedule.next_stop(step), self._freezing.next_change(step)))

    def prepare(self, step: int) -> None:
        """Makes trainable what the steps from `step` to the next stop train."""
        if not self._freezing.apply(step):
            return
        self._network = SharedNodes(self.model) if self._shares else self.model
        self._answer = self.model.answering(self.objective, self._network)
        steps = self._step if self._shares else self._run_steps
        # Converting what a replica does would take AutoGraph seconds.
        self._steps = tf.function(steps, autograph=False)

    def start(self) -> None:
        """Sets the weights that a new run begins with, unless they are fresh ones."""
        earlier = self.config.training.start_from
        if earlier:
            earlier_run.start(self.model, earlier)
        elif self._given:
            self._given.start(self.model)
        if self._average and (earlier or self._given):
            self._average.restart()

    def batches(self, data_set: DataSet, start_step: int) -> Iterator[Any]:
        """Global batches from `start_step` on, split over the replicas.

        A machine reads and decodes only what its own replicas take.
        """
        batch_size = self.config.training.batch_size

        def part(context: tf.distribute.InputContext) -> tf.data.Dataset:
            batches = data_set.train_batches(
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
        """Takes `count` steps, see `prepare`; returns their mean loss and accuracies."""
        self.loss.reset_state()
        self.accuracy.reset_state()
        if self._shares:
            with _quickly_ready():
                for _ in range(count):
                    self._steps(batches)
        else:
            self._steps(batches, tf.constant(count))
        accuracies = {name: float(value) for name, value in self.accuracy.result().items()}
        record = {"loss": float(self.loss.result()), **accuracies}
        if self.config.optimizer.trained_nodes:
            # Beside `images_per_s`, what a run of some nodes costs.
            record["trained_parameters"] = sum(
                math.prod(variable.shape) for variable in self.model.trainable_variables
            )
        return record

    def validate(self, data_set: DataSet) -> dict[str, float]:
        """Figures of every size on the validation split, of averaged weights if there are."""
        accuracy = EnsembleAccuracy(self.sizes, self.config.objective.average)
        batches = data_set.evaluation_batches("validation", self.config.training.batch_size)
        for metric in self._own_metrics:
            metric.reset_state()
        measured = measure(self._predict, batches, [accuracy, *self._own_metrics])
        return {f"validation_{name}": value for name, value in measured.items()}

    def save(self, workdir: Workdir, step: int) -> None:
        """Writes the checkpoint of `step`."""
        keep = self.config.training.keep_checkpoints
        checkpoints.save(self.checkpoint, workdir.checkpoints, step, keep)

    def restore(self, workdir: Workdir, report: Callable[[str], None]) -> int | None:
        """Restores the newest sound checkpoint; returns its step, None if there is none."""
        return checkpoints.restore_newest(self.checkpoint, workdir.checkpoints, report)

    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return float(self.optimizer.learning_rate)

    def _weight_average(self, replicas: int) -> WeightAverage | None:
        momentum = self.config.training.ema_momentum
        if not momentum:
            return None
        average = build.training_model(self.config, self.images, accelerated(), replicas)
        return WeightAverage(self.model, average, momentum)

    def _zeros_for_sums(self, parts: int) -> list[keras.Variable]:
        """Variables for sums of gradients over the parts of a batch; none for a whole one."""
        if parts == 1:
            return []
        return [
            keras.Variable(tf.zeros(variable.shape), trainable=False, name="gradient_sum")
            for variable in self._variables
        ]

    def _trained(self) -> list[keras.Variable]:
        """What gradients are taken of now, the model's first."""
        adversary = self._adversary.trainable_variables if self._adversary else []
        return [*self.model.trainable_variables, *adversary]

    def _sums_of_trained(self) -> list[keras.Variable]:
        """The sums of gradients of what is trained now."""
        pairs = zip(self._variables, self._gradient_sums, strict=True)
        return [total for variable, total in pairs if variable.trainable]

    def _run_steps(self, batches, count):
        _repeat(count, lambda _: self._step(batches))

    def _step(self, batches):
        batch = next(batches)
        if not self._gradient_sums:
            self.strategy.run(self._replica_step, args=batch)
            return
        parts = self.config.training.accumulate_steps
        _repeat(parts, lambda part: self.strategy.run(self._replica_part, args=(*batch, part)))
        self.strategy.run(self._replica_end)

    def _replica_step(self, images, labels):
        """One step on a replica's part of the batch."""
        self._apply(self._gradients(images, labels))

    def _replica_part(self, images, labels, part):
        """Adds the gradients of one of the parts that a replica takes one after the other."""
        # Every n-th image: a part does not depend on the number of devices, each of which gets a
        # stretch of the batch.
        rows = slice(part, None, self.config.training.accumulate_steps)
        gradients = self._gradients(images[rows], labels[rows])
        for total, gradient in zip(self._sums_of_trained(), gradients, strict=True):
            total.assign_add(gradient)

    def _replica_end(self):
        """The step that all parts add up to."""
        # What is read from a mirrored variable has no device, which the reduction asks for.
        totals = self._sums_of_trained()
        self._apply([tf.identity(total) for total in totals])
        for total in totals:
            total.assign(tf.zeros_like(total))

    def _gradients(self, images, labels):
        """Gradients whose sum over all parts and replicas is of the global batch's mean."""
        training = self.config.training
        parts = training.accumulate_steps * self.strategy.num_replicas_in_sync
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in self._trained():
                tape.watch(variable.value)
            answer = self._answer(images, training=True)
            per_example = self.objective.call(labels, answer)
            loss = tf.reduce_sum(per_example) / training.batch_size
            if self._network.losses:
                loss += tf.add_n(self._network.losses) / parts
            if self._adversary:
                # What one of the two learns from does not reach the other.
                told = self._adversary.loss(labels, answer)
                loss += tf.reduce_sum(told) / training.batch_size
        self.loss.update_state(per_example)
        leaf_logits = answer["leaf_logits"] if isinstance(answer, dict) else answer
        self.accuracy.update_state(labels, leaf_logits)
        return tape.gradient(loss, self._trained())

    def _apply(self, gradients):
        # Optimisers sum gradients over replicas.
        trained = self.model.trainable_variables
        self.optimizer.apply(gradients[: len(trained)], trained)
        if self._adversary:
            adversary = self._adversary
            adversary.optimizer.apply(gradients[len(trained) :], adversary.trainable_variables)
        if self._average:
            self._average.update(self.optimizer.iterations)


def _shares(model: Ensemble, replicas: int) -> bool:
    """Whether nodes are traced together.

    Calling them takes a little at each step, which the small steps of small trees would feel.
    """
    return replicas == 1 and isinstance(model, TreeEnsemble) and len(model.networks) > _MANY_NODES


def _owners(model: Ensemble) -> dict[int, Any]:
    """The node that a weight belongs to, by the weight's `id`."""
    return {id(weight): places for places, network in model.networks for weight in network.weights}


@contextlib.contextmanager
def _quickly_ready() -> Iterator[None]:
    """Spares the graph of a step TensorFlow's optimiser of graphs, on a CPU.

    It takes longer than many steps, and no step is faster for it there.
    """
    options = tf.config.optimizer.get_experimental_options()
    if not accelerated():
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        yield
    finally:
        before = options.get("disable_meta_optimizer", False)
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": before})


def _random_states(model: keras.Model) -> list[keras.Variable]:
    """The states of the random numbers that layers draw in training."""
    weights = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


def _repeat(count: tf.Tensor | int, body: Callable[[tf.Tensor], None]) -> None:
    """Calls `body` with 0, 1, … `count - 1`, in a graph."""

    def turn(index: tf.Tensor) -> tf.Tensor:
        body(index)
        return index + 1

    tf.while_loop(lambda index: index < count, turn, [tf.constant(0)], parallel_iterations=1)
