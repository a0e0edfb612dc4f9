"""The objectives compared on digits with 150 labelled images, six seeds.

    hne-sweep --config=configs/sweeps/objectives_digits.py \\
        --root=runs/sweeps --jobs=2 --results=results/objectives_digits.md

66 runs of 30 CPU seconds each, 20 minutes on 2 cores, after the teachers of
`configs/outside_teacher.py`. Eight small networks of
basic units, no augmentation and few labels, because objectives differ where the
networks can fit their training set. Settings are those that `grid_digits.py`
showed to be best for hierarchical distillation and for independent leaves alike;
what is traded against the labels has the settings of the paper.
"""

import ml_collections

from hne_tf.sweeps import plan
from hne_tf.training.config import default

TEACHERS = 8

# The published forms trade a distillation against the labels.
OBJECTIVES = (
    ("independent", {"objective.name": "independent"}),
    ("sub-tree", {"objective.name": "subtree"}),
    (
        "co-distillation",
        {"objective.name": "codistillation", "objective.codistillation.combine": "traded"},
    ),
    (
        "hierarchical, added",
        {"objective.name": "hierarchical", "objective.hierarchical.combine": "added"},
    ),
    (
        "hierarchical, traded",
        {"objective.name": "hierarchical", "objective.hierarchical.combine": "traded"},
    ),
    ("assistants, all larger", {"objective.name": "assistants"}),
    (
        "assistants, next larger",
        {"objective.name": "assistants", "objective.assistants.teachers": "next"},
    ),
    (
        "boosting",
        {
            "objective.name": "boosting",
            "objective.average": "sum",
            "optimizer.branch_gradients": "mean",
        },
    ),
    ("DICE", {"objective.name": "dice"}),
)


def with_teachers(images: str) -> tuple[tuple[str, plan.Overrides], ...]:
    """Groups that learn from the networks of `configs/outside_teacher.py` beside the labels.

    Args:
      images: that file's word for the images.
    """
    models = tuple(f"runs/teachers/{images}_{seed}" for seed in range(TEACHERS))
    shared = {"objective.name": "outside", "objective.outside.models": models}
    return (
        ("outside teachers, mean", shared),
        ("outside teachers, one a leaf", {**shared, "objective.outside.learns": "own"}),
    )


def get_config() -> ml_collections.ConfigDict:
    """The settings of the sweep."""
    return plan.describe(
        title="Objectives on digits with 150 labelled images",
        base=base(),
        groups=(*OBJECTIVES, *with_teachers("digits")),
        seeds=range(6),
        split="test",
        reference="independent",
        equal_computation=True,
    )


def base() -> ml_collections.ConfigDict:
    """What its runs have in common."""
    config = default()
    config.data.name = "digits"
    config.data.train_examples = 150
    config.model.branching = (1, 2, 2, 2)
    config.model.resnet.unit = "basic"
    config.model.resnet.widths = (16, 16, 32, 32)
    config.model.resnet.units = (1, 1, 1, 1)
    config.model.resnet.strides = (1, 2, 1, 1)
    config.training.epochs = 60.0
    config.training.batch_size = 32
    # An epoch is five steps, shorter than saving or validating takes.
    config.training.checkpoint_every_epochs = 10.0
    config.training.validate_every_epochs = 20.0
    config.training.deterministic = True
    return config
