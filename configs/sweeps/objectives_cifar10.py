"""The objectives compared on 1,500 images of CIFAR-10, three seeds.

    hne-sweep --config=configs/sweeps/objectives_cifar10.py \\
        --root=runs/sweeps --jobs=2 --results=results/objectives_cifar10.md

12 runs of about 4 CPU minutes each, half an hour on 2 cores. Few images and no
crops, because objectives differ where the networks can fit their training set:
with twenty thousand images and a dozen epochs they cannot, and what is taken
from the labels is lost. The learning rate is the best of `grid_cifar10.py`.
"""

import ml_collections

from configs.sweeps import objectives_digits
from hne_tf.sweeps import plan
from hne_tf.training.config import default

# The four of the paper, the traded form of which is left to digits: a run takes minutes here.
NAMES = ("independent", "sub-tree", "co-distillation", "hierarchical, added")
GROUPS = tuple(group for group in objectives_digits.OBJECTIVES if group[0] in NAMES)


def get_config() -> ml_collections.ConfigDict:
    """The settings of the sweep."""
    return plan.describe(
        title="Objectives on 1,500 images of CIFAR-10",
        base=base(),
        groups=GROUPS,
        seeds=range(3),
        split="test",
        reference="independent",
    )


def base() -> ml_collections.ConfigDict:
    """What its runs have in common."""
    config = default()
    config.data.name = "cifar10"
    config.data.flip = True
    config.data.train_examples = 1500
    config.model.branching = (1, 2, 2, 2)
    config.model.resnet.unit = "basic"
    config.model.resnet.units = (1, 1, 1, 1)
    config.model.resnet.widths = (16, 16, 32, 32)
    config.model.resnet.strides = (1, 2, 1, 2)
    config.training.epochs = 40.0
    # There are more images to validate on than to train on.
    config.training.checkpoint_every_epochs = 2.0
    config.training.validate_every_epochs = 10.0
    config.training.deterministic = True
    return config
