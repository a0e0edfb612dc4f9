"""Nested ensembles that learn from all larger ones."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from hne_tf.errors import InputError
from hne_tf.models.averaging import ensemble_log_probabilities
from hne_tf.objectives.distillation import Distillation
from hne_tf.tree import ensemble_sizes

TEACHERS = ("larger", "next")


@keras.saving.register_keras_serializable("hne_tf")
class TeacherAssistants(Distillation):
    """`D = sum_s mean_{t > s} CE(E_s / T, softmax(E_t / T))`: larger ensembles teach smaller ones.

    Ozerov and Duong, "In-place knowledge distillation with teacher assistant for improved
    training of flexible deep neural networks", EUSIPCO 2021. The full ensemble alone teaches
    in `HierarchicalDistillation`, which this is for two sizes.

    Args:
      sizes: ensemble sizes, each of which teaches those before; by default powers of two
        below the number of leaves, then all leaves, as `Tree.sizes`.
      teachers: of each size all `"larger"` ones, or the `"next"` larger one, a chain.

    See `Distillation` for the other arguments.

    Raises:
      InputError: as there, for unknown teachers, or for a single size.
    """

    def __init__(
        self,
        sizes: Sequence[int] | None = None,
        alpha: float = 0.5,
        temperature: float = 2.0,
        combine: str = "added",
        average: str = "logits",
        ramp_steps: int = 0,
        label_smoothing: float = 0.0,
        views: int = 1,
        teachers: str = "larger",
        name: str = "assistants",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *(alpha, temperature, combine, average, ramp_steps, label_smoothing, views),
            name=name,
            **kwargs,
        )
        if teachers not in TEACHERS:
            raise InputError(f"teachers must be one of {', '.join(TEACHERS)}, got {teachers!r}")
        self._sizes = None if sizes is None else _checked(tuple(sizes))
        self._teachers = teachers

    def _distilled(self, leaf_logits: Any) -> Any:
        sizes = self._sizes or _checked(ensemble_sizes(leaf_logits.shape[1]))
        scores = ensemble_log_probabilities(leaf_logits, sizes, self._average, self._temperature)
        soft_targets = ops.stop_gradient(ops.exp(scores))
        shares = ops.convert_to_tensor(self._shares(len(sizes)), scores.dtype)
        return -ops.einsum("bsc,btc,st->b", scores, soft_targets, shares)

    def _shares(self, sizes: int) -> np.ndarray:
        """Of each teacher, a column, in what a student, a row, learns."""
        if self._teachers == "next":
            return np.eye(sizes, k=1)
        larger = np.triu(np.ones((sizes, sizes)), k=1)
        return larger / np.maximum(larger.sum(axis=1, keepdims=True), 1.0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sizes": self._sizes, "teachers": self._teachers}


def _checked(sizes: Sequence[int]) -> Sequence[int]:
    """The sizes; raises `InputError` for a single one."""
    if len(sizes) < 2:
        raise InputError(
            "teacher assistants need two ensemble sizes or more, as a tree of two leaves has, "
            f"got {tuple(sizes)}"
        )
    return sizes
