"""CIFAR-100 as in the paper: sixteen small networks of five blocks, 300 epochs.

    hne-train --config=configs/cifar100_small.py --workdir=runs/cifar100_small \\
        --config.data.download=True

For a GPU: 105,469 steps of 128 images are days on a CPU. It has not been run
here, so no accuracy is stated. Depths and widths are the project's own
preset `small`, which need not be the paper's in every number.
"""

import ml_collections

from configs import cifar10_small


def get_config() -> ml_collections.ConfigDict:
    """The settings of the experiment."""
    config = cifar10_small.get_config()
    config.data.name = "cifar100"
    return config
