"""The objectives compared on 1,500 images of CIFAR-10, three seeds.

    hne-sweep --config=configs/sweeps/objectives_cifar10.py \\
        --root=runs/sweeps --jobs=2 --results=results/objectives_cifar10.md

24 runs of about 9 CPU minutes each, two hours on 2 cores. Few images and no crops,
because objectives differ where the networks can fit their training set: with twenty
thousand images and a dozen epochs they cannot, and what is taken from the labels is
lost. The learning rate is the best of `grid_cifar10.py`.
"""

import ml_collections

from configs.sweeps import objectives_digits
from hne_tf.sweeps import plan
from hne_tf.training.config import default

# A run takes minutes here: the traded form of hierarchical distillation and teachers from outside,
# which take their steps nearly twice as long, are left to digits.
GROUPS = tuple(
    group for group in objectives_digits.OBJECTIVES if group[0] != "hierarchical, traded"
)


def get_config() -> ml_collections.ConfigDict:
    """The settings of the sweep."""
    return plan.describe(
        title="Objectives on 1,500 images of CIFAR-10",
        base=base(),
        groups=GROUPS,
        seeds=range(3),
        split="test",
        reference="independent",
        equal_computation=True,
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
