"""The objectives compared on digits with 150 labelled images, six seeds.

    hne-sweep --config=configs/sweeps/objectives_digits.py \\
        --root=runs/sweeps/objectives_digits --results=results/objectives_digits.md

30 runs of 40 CPU seconds each, a quarter of an hour on 2 cores with --jobs=2.
Eight small networks of basic units, no augmentation and few labels, because
objectives differ where the networks can fit their training set.
"""

import ml_collections

from hne_tf.config import default
from hne_tf.sweeps import plan

# Co-distillation in its published form, which trades it against the labels.
OBJECTIVES = (
    ("independent", {"objective.name": "independent"}),
    ("sub-tree", {"objective.name": "subtree"}),
    ("co-distillation", {"objective.name": "codistillation", "objective.combine": "traded"}),
    ("hierarchical, added", {"objective.name": "hierarchical", "objective.combine": "added"}),
    ("hierarchical, traded", {"objective.name": "hierarchical", "objective.combine": "traded"}),
)


def get_config() -> ml_collections.ConfigDict:
    """The settings of the sweep."""
    return plan.describe(
        title="Objectives on digits with 150 labelled images",
        base=base(),
        groups=OBJECTIVES,
        seeds=range(6),
        split="test",
        reference="independent",
    )


def base() -> ml_collections.ConfigDict:
    """What its runs have in common."""
    config = default()
    config.data.name = "digits"
    config.data.train_examples = 150
    config.model.branching = (1, 2, 2, 2)
    config.model.unit = "basic"
    config.model.widths = (16, 16, 32, 32)
    config.model.units = (1, 1, 1, 1)
    config.model.strides = (1, 2, 1, 1)
    config.objective.alpha = 0.5
    config.objective.temperature = 2.0
    config.training.epochs = 60.0
    config.training.batch_size = 32
    # An epoch is five steps, shorter than saving or validating takes.
    config.training.checkpoint_every_epochs = 10.0
    config.training.validate_every_epochs = 20.0
    config.training.deterministic = True
    return config
