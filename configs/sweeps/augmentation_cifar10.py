"""What label smoothing, MixUp and CutMix bring on 10,000 images of CIFAR-10.

    hne-sweep --config=configs/sweeps/augmentation_cifar10.py \\
        --root=runs/sweeps --jobs=2 --results=results/augmentation_cifar10.md

4 runs of about 20 CPU minutes each, 40 minutes on 2 cores. The first group is
`configs/cifar10_cpu.py` with fewer images and epochs; each of the others changes
one thing about it.
"""

import ml_collections

from configs import cifar10_cpu
from hne_tf.sweeps import plan

GROUPS = (
    ("crops and flips", {}),
    ("label smoothing", {"objective.label_smoothing": 0.1}),
    ("MixUp", {"data.mix": "mixup"}),
    ("CutMix", {"data.mix": "cutmix"}),
)


def get_config() -> ml_collections.ConfigDict:
    """The settings of the sweep."""
    config = cifar10_cpu.get_config()
    config.data.train_examples = 10_000
    config.training.epochs = 15.0
    config.training.checkpoint_every_epochs = 3.0
    config.training.validate_every_epochs = 5.0
    config.training.deterministic = True
    return plan.describe(
        title="Augmentation on 10,000 images of CIFAR-10",
        base=config,
        groups=GROUPS,
        seeds=range(1),
        split="test",
        reference="crops and flips",
    )
