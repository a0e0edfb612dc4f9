"""Training objectives over leaf logits, as Keras losses.

Ruiz and Verbeek, "Anytime Inference with Distilled Hierarchical Neural
Ensembles", AAAI 2021, section 3.2. Every loss maps labels `[batch]` and leaf
logits `[batch, leaves, classes]` to one value per example `[batch]`: sums, not
means, over leaves and ensemble sizes, so that each leaf trains at full strength.

`OBJECTIVES` is the registry: a new file beside the others needs a line there. Classes
are loaded when they are first used, so that configs need no Keras.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hne_tf import import_path
from hne_tf.errors import InputError

__all__ = [
    "OBJECTIVES",
    "Boosting",
    "CoDistillation",
    "Dice",
    "HierarchicalDistillation",
    "Independent",
    "Objective",
    "ObjectiveEntry",
    "OutsideTeachers",
    "Subtree",
    "TeacherAssistants",
    "find",
]


@dataclasses.dataclass(frozen=True)
class ObjectiveEntry:
    """What the name of an objective in a config stands for.

    Attributes:
      path: import path of the class.
      settings: defaults of what a config sets. One that ends in `_epochs` reaches the
        class in steps, with `_steps` in its name.
    """

    path: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_DISTILLATION = {"alpha": 0.5, "temperature": 2.0, "combine": "added", "ramp_epochs": 0.0}

_ROOM = "hne_tf.objectives"

# By the name that a config gives them.
OBJECTIVES: Mapping[str, ObjectiveEntry] = {
    "independent": ObjectiveEntry(f"{_ROOM}.independent:Independent"),
    "subtree": ObjectiveEntry(f"{_ROOM}.subtree:Subtree"),
    "codistillation": ObjectiveEntry(f"{_ROOM}.distillation:CoDistillation", _DISTILLATION),
    "hierarchical": ObjectiveEntry(f"{_ROOM}.distillation:HierarchicalDistillation", _DISTILLATION),
    "assistants": ObjectiveEntry(
        f"{_ROOM}.assistants:TeacherAssistants", {**_DISTILLATION, "teachers": "larger"}
    ),
    "boosting": ObjectiveEntry(f"{_ROOM}.boosting:Boosting"),
    "dice": ObjectiveEntry(
        f"{_ROOM}.dice:Dice",
        {
            "weight": 0.1,
            "nodes": (),
            "pairs": 0,
            "width": 128,
            "learning_rate": 1e-3,
            "ramp_epochs": 0.0,
        },
    ),
    "outside": ObjectiveEntry(
        f"{_ROOM}.outside:OutsideTeachers",
        {**_DISTILLATION, "models": (), "learns": "mean", "mean": (), "std": ()},
    ),
}

_PATHS = {
    "Objective": f"{_ROOM}.objective:Objective",
    **{entry.path.split(":")[1]: entry.path for entry in OBJECTIVES.values()},
}


def find(name: str) -> type:
    """The class of a name in a config, or of an import path, `my_module:MyObjective`.

    Raises:
      InputError: if there is no such objective.
    """
    import keras

    if name in OBJECTIVES:
        return import_path.load("objective.name", OBJECTIVES[name].path)
    if not import_path.is_import_path(name):
        raise InputError(
            f"objective must be one of {', '.join(OBJECTIVES)} or an import path such as "
            f"my_module:MyObjective, got {name!r}"
        )
    kind = import_path.load("objective.name", name)
    if not issubclass(kind, keras.losses.Loss):
        raise InputError(f"objective.name must name a subclass of keras.losses.Loss, got {name!r}")
    return kind


def __getattr__(name: str) -> Any:
    if name not in _PATHS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_path.load("objective.name", _PATHS[name])
