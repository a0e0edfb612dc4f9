"""Real handwritten digits, sixteen small networks.

    hne-train --config=configs/digits.py --workdir=runs/digits

A minute on 2 cores. Test accuracy 98% or more with all leaves.
"""

import ml_collections

from hne_tf.training.config import default


def get_config() -> ml_collections.ConfigDict:
    """The settings of the experiment."""
    config = default()
    config.data.name = "digits"
    config.data.pad_pixels = 1
    config.model.resnet.widths = (16, 32, 32, 32, 32)
    config.model.resnet.units = (1, 1, 1, 1, 1)
    config.model.resnet.strides = (1, 2, 1, 1, 1)
    config.optimizer.learning_rate = 0.1
    config.training.epochs = 30.0
    config.training.batch_size = 64
    config.training.deterministic = True
    return config
