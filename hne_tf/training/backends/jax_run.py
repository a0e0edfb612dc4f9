"""One training run on JAX: its state as arrays, and the compiled steps that they take."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import keras
import ml_collections
import numpy as np
from jax import numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from hne_tf.data.arrays.batches import ArrayBatch, ArrayDataSet
from hne_tf.evaluation.measuring import measure
from hne_tf.image_spec import ImageSpec
from hne_tf.metrics import EnsembleAccuracy
from hne_tf.models.ensemble import Ensemble
from hne_tf.training import build, checkpoints, optimizer
from hne_tf.training.backends.array_checkpoint import ArrayCheckpoint
from hne_tf.training.schedule import Schedule
from hne_tf.training.weight_average import WeightAverage
from hne_tf.training.workdir import Workdir

# Values of some variables, in their order.
Values = list[jax.Array]
# Values of the variables of a run, by what they are.
RunState = dict[str, Values]

# The parts of a state that gradients are taken of, and those of an objective's own network.
_TRAINED = ("trainable", "adversary")
_OF_ADVERSARY = ("adversary", "adversary_optimizer")


class JaxRun:
    """What a run consists of.

    Steps are pure functions of arrays. Keras's variables get the values when something
    else needs them, see `settle`. With several devices each computes its part of a batch,
    and XLA exchanges sums, those of batch norms too: the numbers are those of one device.

    Args:
      config: settings.
      images: shape, classes and normalisation of the images.
      schedule: the run's steps.
      devices: that take them.
      model: by default the settings' own.

    Raises:
      InputError: for settings that break a rule.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        images: ImageSpec,
        schedule: Schedule,
        devices: Sequence[jax.Device],
        model: Ensemble | None = None,
    ) -> None:
        self.config = config
        self.images = images
        self.schedule = schedule
        self.sizes = build.tree(config).sizes
        self._parts = build.batch_parts(config, len(devices))
        on_accelerator = devices[0].platform != "cpu"
        # Hundreds of small operations are compiled here, which takes an accelerator longer.
        with _host():
            self._build(on_accelerator, model)
        self._on_all, self._by_image, self._by_step = _placements(devices)
        self._state = self._read()
        self._is_settled = True
        # XLA's convolutions in a loop use one thread of a CPU.
        self._loops = on_accelerator
        self._step = jax.jit(self._add_step, donate_argnums=(0, 1))
        self._steps = jax.jit(self._add_steps, donate_argnums=(0, 1))
        self._predict = jax.jit(self._leaf_logits)

    def _build(self, on_accelerator: bool, model: Ensemble | None) -> None:
        """Makes what Keras is to compute, in its own variables."""
        config, images = self.config, self.images
        self.model = model or build.training_model(
            config, images, on_accelerator, precision=config.training.precision
        )
        self.optimizer = optimizer.optimizer(config, self.schedule)
        self.optimizer.build(self.model.trainable_variables)
        self._accuracy = EnsembleAccuracy(self.sizes, config.objective.average)
        self._accuracy.build(self.model.output_shape)
        self._own_metrics = build.metrics(config)
        self.objective = build.objective(config, self.schedule.steps_per_epoch)
        if hasattr(self.objective, "iterations"):
            self.objective.iterations = self.optimizer.iterations
        self._answer = self.model.answering(self.objective)
        self._adversary = self.model.build_adversary(self.objective)
        self._average = self._weight_average(on_accelerator)
        self._variables = {
            "trainable": self.model.trainable_variables,
            "others": self.model.non_trainable_variables,
            "optimizer": self.optimizer.variables,
            "average": self._average.model.variables if self._average else [],
            "adversary": self._adversary.trainable_variables if self._adversary else [],
            "adversary_optimizer": self._adversary.optimizer.variables if self._adversary else [],
        }
        self.checkpoint = self._checkpoint()

    def start(self) -> None:
        """Changes nothing: weights are fresh ones."""

    def next_stop(self, step: int) -> int:
        """The step at which the host is needed next, after `step`."""
        return self.schedule.next_stop(step)

    def prepare(self, step: int) -> None:
        """Changes nothing: all layers are trained at every step."""

    def batches(self, data_set: ArrayDataSet, start_step: int) -> Iterator[ArrayBatch]:
        """Global batches from `start_step` on."""
        return data_set.train_batches(
            batch_size=self.config.training.batch_size,
            start_step=start_step,
            total_steps=self.schedule.total,
            seed=self.config.seed,
        )

    def take_steps(self, batches: Iterator[ArrayBatch], count: int) -> dict[str, float]:
        """Takes `count` steps; returns their mean loss and accuracies."""
        zeros = [np.zeros(each.shape, each.dtype) for each in self._accuracy.variables]
        totals = jax.device_put((np.zeros((), np.float32), zeros), self._on_all)
        taken = itertools.islice(batches, count)
        self._is_settled = False
        if self._loops:
            images, labels = self._in_one(taken)
            self._state, totals = self._steps(self._state, totals, images, labels, count)
        else:
            for batch in taken:
                images, labels = jax.device_put(batch, self._by_image)
                self._state, totals = self._step(self._state, totals, images, labels)
        loss, accuracy = jax.device_get(totals)
        with _host():
            for variable, value in zip(self._accuracy.variables, accuracy, strict=True):
                variable.assign(value)
            accuracies = {name: float(value) for name, value in self._accuracy.result().items()}
        return {"loss": float(loss) / count, **accuracies}

    def validate(self, data_set: ArrayDataSet) -> dict[str, float]:
        """Figures of every size on the validation split, of averaged weights if there are."""
        batch_size = self.config.training.batch_size

        def predict(images: np.ndarray) -> np.ndarray:
            # One shape, which is compiled once.
            missing = batch_size - len(images)
            padded = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
            padded = jax.device_put(padded, self._by_image)
            return np.asarray(self._predict(self._state, padded))[: len(images)]

        batches = data_set.evaluation_batches("validation", batch_size)
        with _host():
            accuracy = EnsembleAccuracy(self.sizes, self.config.objective.average)
            for metric in self._own_metrics:
                metric.reset_state()
            measured = measure(predict, batches, [accuracy, *self._own_metrics])
        return {f"validation_{name}": value for name, value in measured.items()}

    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        index = next(
            index
            for index, variable in enumerate(self.optimizer.variables)
            if variable is self.optimizer.iterations
        )
        with _host():
            self.optimizer.iterations.assign(np.array(self._state["optimizer"][index]))
            return float(self.optimizer.learning_rate)

    def save(self, workdir: Workdir, step: int) -> None:
        """Writes the checkpoint of `step`."""
        self.settle()
        keep = self.config.training.keep_checkpoints
        checkpoints.save(self.checkpoint, workdir.checkpoints, step, keep)

    def restore(self, workdir: Workdir, report: Callable[[str], None]) -> int | None:
        """Restores the newest sound checkpoint; returns its step, None if there is none."""
        step = checkpoints.restore_newest(self.checkpoint, workdir.checkpoints, report)
        self._state = self._read()
        self._is_settled = True
        return step

    def settle(self) -> None:
        """Gives Keras's variables the values that the steps have come to."""
        if self._is_settled:
            return
        with _host():
            for name, variables in self._variables.items():
                for variable, value in zip(variables, self._state[name], strict=True):
                    # A copy: the next step takes over the memory of the state.
                    variable.assign(np.array(value))
        self._is_settled = True

    def _read(self) -> RunState:
        """The values that Keras's variables have, on all devices."""
        with _host():
            # Copies: the next step takes over the memory of the state.
            values = {
                name: [jnp.copy(variable.value) for variable in variables]
                for name, variables in self._variables.items()
            }
        return jax.device_put(values, self._on_all)

    def _weight_average(self, on_accelerator: bool) -> WeightAverage | None:
        momentum = self.config.training.ema_momentum
        if not momentum:
            return None
        average = build.training_model(self.config, self.images, on_accelerator)
        return WeightAverage(self.model, average, momentum)

    def _checkpoint(self) -> ArrayCheckpoint:
        models = {"model": self.model}
        if self._average:
            models["average"] = self._average.model
        weights = {id(variable) for variable in self.model.weights}
        # States of random numbers, in layers of the user's own.
        seeds = [each for each in self.model.variables if id(each) not in weights]
        others = {"optimizer": self.optimizer.variables, "seeds": seeds}
        if self._adversary:
            others |= {name: self._variables[name] for name in _OF_ADVERSARY}
        return ArrayCheckpoint(models, others)

    def _in_one(self, batches: Iterator[ArrayBatch]) -> tuple[jax.Array, jax.Array]:
        """The batches of a call side by side, always as many, of which the last may be unused."""
        taken = list(batches)
        taken += [taken[-1]] * (self.schedule.per_call - len(taken))
        images, labels = zip(*taken, strict=True)
        return jax.device_put((np.stack(images), np.stack(labels)), self._by_step)

    def _add_steps(
        self, state: RunState, totals: Any, images: jax.Array, labels: jax.Array, count: int
    ) -> tuple[RunState, Any]:
        """Takes the first `count` steps of a call, in one loop on the device."""

        def step(index: jax.Array, carried: tuple[RunState, Any]) -> tuple[RunState, Any]:
            return self._add_step(*carried, images[index], labels[index])

        return jax.lax.fori_loop(0, count, step, (state, totals))

    def _add_step(
        self, state: RunState, totals: Any, images: jax.Array, labels: jax.Array
    ) -> tuple[RunState, Any]:
        """The state and the sums of losses and hits after one more step."""
        gradients, others, totals = self._gradients(state, totals, images, labels)
        trainable, of_optimizer = self.optimizer.stateless_apply(
            state["optimizer"], gradients["trainable"], state["trainable"]
        )
        after = {**state, "trainable": trainable, "others": others, "optimizer": of_optimizer}
        if self._adversary:
            after["adversary"], after["adversary_optimizer"] = (
                self._adversary.optimizer.stateless_apply(
                    state["adversary_optimizer"], gradients["adversary"], state["adversary"]
                )
            )
        if self._average:
            after["average"] = self._averaged(after)
        return after, totals

    def _gradients(
        self, state: RunState, totals: Any, images: jax.Array, labels: jax.Array
    ) -> tuple[RunState, Values, Any]:
        """Gradients of the batch's mean loss, with what the forward pass has changed."""
        trained = {name: state[name] for name in _TRAINED}
        of_part = jax.grad(self._loss, has_aux=True)
        if self._parts == 1:
            gradients, (others, totals) = of_part(
                trained, state["others"], totals, state, images, labels
            )
            return gradients, others, totals

        # As under TensorFlow, a part is every n-th image.
        def add_part(carried: Any, part: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            sums, others, totals = carried
            gradients, (others, totals) = of_part(trained, others, totals, state, *part)
            return (jax.tree.map(jnp.add, sums, gradients), others, totals), None

        parts = tuple(
            jnp.swapaxes(x.reshape(-1, self._parts, *x.shape[1:]), 0, 1) for x in (images, labels)
        )
        nothing = jax.tree.map(jnp.zeros_like, trained)
        return jax.lax.scan(add_part, (nothing, state["others"], totals), parts)[0]

    def _loss(
        self,
        trained: RunState,
        others: Values,
        totals: Any,
        state: RunState,
        images: jax.Array,
        labels: jax.Array,
    ) -> tuple[jax.Array, tuple[Values, Any]]:
        """What a part of a batch adds to the loss; with the values after it."""
        total_loss, hits = totals
        batch_size = self.config.training.batch_size
        given = [
            *zip(self._variables["others"], others, strict=True),
            *zip(self._accuracy.variables, hits, strict=True),
        ]
        for name in _TRAINED:
            given += zip(self._variables[name], trained[name], strict=True)
        # Objectives may look at the step.
        for name in ("optimizer", "adversary_optimizer"):
            given += zip(self._variables[name], state[name], strict=True)
        with keras.StatelessScope(given, collect_losses=True) as scope:
            answer = self._answer(images, training=True)
            summed = jnp.sum(self.objective.call(labels, answer)) / batch_size
            leaf_logits = answer["leaf_logits"] if isinstance(answer, dict) else answer
            self._accuracy.update_state(labels, leaf_logits)
            penalty = sum(self.model.losses) / self._parts
            if self._adversary:
                # What one of the two learns from does not reach the other.
                penalty += jnp.sum(self._adversary.loss(labels, answer)) / batch_size
        others = [scope.get_current_value(each) for each in self._variables["others"]]
        hits = [scope.get_current_value(each) for each in self._accuracy.variables]
        return summed + penalty, (others, (total_loss + jax.lax.stop_gradient(summed), hits))

    def _averaged(self, state: RunState) -> Values:
        """The average after the updates of a step."""
        names = ("trainable", "others", "optimizer", "average")
        given = itertools.chain.from_iterable(
            zip(self._variables[name], state[name], strict=True) for name in names
        )
        with keras.StatelessScope(given) as scope:
            self._average.update(self.optimizer.iterations.value)
        return [scope.get_current_value(each) for each in self._variables["average"]]

    def _leaf_logits(self, state: RunState, images: jax.Array) -> jax.Array:
        """Leaf logits in inference, of averaged weights if there are."""
        names = ("average",) if self._average else ("trainable", "others")
        model = self._average.model if self._average else self.model
        given = itertools.chain.from_iterable(
            zip(self._variables[name], state[name], strict=True) for name in names
        )
        with keras.StatelessScope(given):
            return model(images, training=False)


def _host() -> contextlib.AbstractContextManager[None]:
    """Has the CPU compute what nothing else decides, where JAX has one."""
    with contextlib.suppress(RuntimeError):
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    return contextlib.nullcontext()


def _placements(devices: Sequence[jax.Device]) -> tuple[NamedSharding, ...]:
    """Where values lie that all devices have, batches, and the batches of several steps."""
    mesh = jax.sharding.Mesh(np.array(devices), ("image",))
    place = functools.partial(NamedSharding, mesh)
    return (
        place(PartitionSpec()),
        place(PartitionSpec("image")),
        place(PartitionSpec(None, "image")),
    )
