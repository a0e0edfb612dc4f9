"""How an ensemble is compiled: what it checks, and what it makes before Keras traces a step."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from hne_tf.errors import InputError


class CompiledModel(keras.Model):
    """A model of leaf logits as Keras compiles it and prepares it for `fit`."""

    # Names of the nodes whose activations the loss asks for.
    _asked: tuple[str, ...] = ()

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        **options: Any,
    ) -> None:
        """Keras's `compile`, for losses and metrics of leaf logits.

        Args:
          optimizer: as in Keras.
          loss: one of `hne_tf.objectives`, or one of your own, see `Objective` there.
          loss_weights: as in Keras.
          metrics: of `hne_tf.metrics`, or your own.
          weighted_metrics: likewise, weighted by `sample_weight`.
          options: as in Keras.

        Raises:
          InputError: for a loss or metric that takes one answer per example, as
            Keras's own do, a loss with an adversary, which `fit` cannot train, or one that
            asks for activations of unknown nodes.
        """
        _check_loss(loss)
        _check_metrics([metrics, weighted_metrics])
        super().compile(
            optimizer,
            loss=loss,
            loss_weights=loss_weights,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            **options,
        )
        if hasattr(loss, "iterations"):
            loss.iterations = self.optimizer.iterations
        self._asked = self._checked_names(getattr(loss, "activations", ()))
        _build_metrics([metrics, weighted_metrics], self.output_shape)

    def make_train_function(self, force: bool = False) -> Any:
        """Keras's, with the optimiser's variables made before.

        Made in the first step, they would have TensorFlow trace it twice.
        """
        # Only TensorFlow's trainer has a strategy. Keras's others build the optimiser first.
        strategy = getattr(self, "distribute_strategy", None)
        if strategy is not None and not self.optimizer.built:
            with strategy.scope():
                self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a model that is loaded as it was when it was saved."""
        # Keras does not call a `compile` that is not its own.
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def _checked_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """The names of nodes; raises `InputError` for one that no node has."""
        raise NotImplementedError


def _check_loss(loss: Any) -> None:
    """Raises `InputError` for a loss that `fit` cannot train with.

    Keras's own take one answer per example, and `fit` has one optimiser.
    """
    if hasattr(loss, "adversary"):
        raise InputError(
            f"fit has one optimiser and {loss.name} needs two: train with hne_tf.train or "
            "hne-train, got compile"
        )
    if _is_keras_own(loss):
        raise InputError(
            "the loss must take leaf logits [batch, leaves, classes], such as "
            f"hne_tf.losses.Independent(), got Keras's {_name(loss)}"
        )


def _check_metrics(metrics: Any) -> None:
    """Raises `InputError` for a metric of Keras's own, which takes one answer per example."""
    for metric in keras.tree.flatten(metrics):
        if _is_keras_own(metric):
            raise InputError(
                "metrics must take leaf logits [batch, leaves, classes], such as "
                f"hne_tf.metrics.EnsembleAccuracy(), got Keras's {_name(metric)}"
            )


def _build_metrics(metrics: Any, leaf_logits_shape: tuple[int | None, ...]) -> None:
    """Makes the state of metrics that are built by the shape of leaf logits, as ours are."""
    for metric in keras.tree.flatten(metrics):
        if hasattr(metric, "build"):
            metric.build(leaf_logits_shape)


def _is_keras_own(measure: str | Callable[..., Any] | None) -> bool:
    """Whether a loss or metric is Keras's; one that wraps a function is the function's."""
    if measure is None or isinstance(measure, str):
        return measure is not None
    function = getattr(measure, "fn", None) or getattr(measure, "_fn", measure)
    return function.__module__.split(".")[0] == "keras"


def _name(measure: Any) -> str:
    if isinstance(measure, str):
        return repr(measure)
    return getattr(measure, "__name__", type(measure).__name__)
