"""CIFAR-100 as in the paper: sixteen large networks of five blocks, 300 epochs.

    hne-train --config=configs/cifar100_large.py --workdir=runs/cifar100_large \\
        --config.data.download=True

For a GPU: 105,469 steps of 128 images are days on a CPU. It has not been run
here, so no accuracy is stated. Depths and widths are the project's own
preset `large`, which need not be the paper's in every number.
"""

import ml_collections

from hne_tf.config import default


def get_config() -> ml_collections.ConfigDict:
    """The settings of the experiment."""
    config = default()
    config.data.name = "cifar100"
    config.data.pad_pixels = 4
    config.data.flip = True
    config.model.preset = "large"
    config.model.branching = (1, 2, 2, 2, 2)
    config.optimizer.learning_rate = 0.1
    config.training.epochs = 300.0
    config.training.batch_size = 128
    return config
