"""CIFAR-100 as in the paper: sixteen large networks of five blocks, 300 epochs.

    hne-train --config=configs/cifar100_large.py --workdir=runs/cifar100_large \\
        --config.data.download=True

For a GPU: 105,469 steps of 128 images are days on a CPU. It has not been run
here, so no accuracy is stated. Depths and widths are the project's own
preset `large`, which need not be the paper's in every number.
"""

import ml_collections

from configs import cifar100_small


def get_config() -> ml_collections.ConfigDict:
    """The settings of the experiment."""
    config = cifar100_small.get_config()
    config.model.preset = "large"
    return config
