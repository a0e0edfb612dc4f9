"""Leaves that learn from networks outside their tree."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from hne_tf.errors import InputError
from hne_tf.models.teachers import Teachers
from hne_tf.objectives.distillation import Distillation

LEARNS = ("mean", "own")


@keras.saving.register_keras_serializable("hne_tf")
class OutsideTeachers(Distillation):
    """`D = sum_n CE(f_n / T, softmax(g / T))`, with `g` the logits of trained networks.

    Leaves learn from their mean (Hinton et al., "Distilling the Knowledge in a Neural
    Network", 2015), or leaf n from network n (Tran et al., "Hydra: Preserving Ensemble
    Diversity for Model Distillation", 2020).

    Args:
      models: the teachers, see `Teachers`. They are not saved with a model: one that is
        loaded is compiled anew before it is trained further.
      learns: from the `"mean"` logits of all teachers, or each leaf from its `"own"` one.
      mean: see `Teachers`.
      std: see `Teachers`.

    See `Distillation` for the other arguments.

    Attributes:
      teacher: what gives the teachers' logits, see `Objective`.

    Raises:
      InputError: as there, or for another way to learn.

    Example:
      >>> teacher = keras.models.load_model("teacher.keras")
      >>> model.compile("sgd", loss=OutsideTeachers([teacher], mean=(127.5,), std=(127.5,)))
    """

    def __init__(
        self,
        models: Sequence[keras.Model] = (),
        alpha: float = 0.5,
        temperature: float = 2.0,
        combine: str = "added",
        ramp_steps: int = 0,
        label_smoothing: float = 0.0,
        views: int = 1,
        learns: str = "mean",
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        name: str = "outside",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *(alpha, temperature, combine, "logits", ramp_steps, label_smoothing, views),
            name=name,
            **kwargs,
        )
        if learns not in LEARNS:
            raise InputError(f"learns must be one of {', '.join(LEARNS)}, got {learns!r}")
        self._learns = learns
        self._statistics = {"mean": tuple(mean), "std": tuple(std)}
        self.teacher = Teachers(models, mean, std) if models else _missing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        leaf_logits, teachers = y_pred["leaf_logits"], y_pred["teacher_logits"]
        _, leaves, classes = leaf_logits.shape
        if teachers.shape[-1] != classes:
            raise InputError(
                f"teachers must have the {classes} classes of the model, got {teachers.shape[-1]}"
            )
        if self._learns == "own" and teachers.shape[1] != leaves:
            raise InputError(
                f"each of the {leaves} leaves must have a teacher of its own, got "
                f"{teachers.shape[1]} teachers"
            )
        if self._learns == "mean":
            teachers = ops.mean(teachers, axis=1, keepdims=True)
        soft_targets = ops.softmax(teachers / self._temperature, axis=-1)
        students = ops.log_softmax(leaf_logits / self._temperature, axis=-1)
        return self._combined(y_true, leaf_logits, -ops.sum(soft_targets * students, axis=(1, 2)))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        # Of the students' ensembles, which nobody learns from here.
        del config["average"]
        return {**config, "learns": self._learns, **self._statistics}


def _missing(images: Any) -> Any:
    raise InputError("outside teachers are not saved with a model: compile it anew, got none")
