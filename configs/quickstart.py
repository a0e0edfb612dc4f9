"""Real handwritten digits, a trunk with four branches of four networks: the quickstart.

    hne-train --config=configs/quickstart.py --workdir=runs/quickstart/digits

Most of the work is in the last block, which no networks share: with many images in a
request, sixteen networks take several times as long as one.
Test accuracy 98% or more.
"""

import ml_collections

from hne_tf.training.config import default


def get_config() -> ml_collections.ConfigDict:
    """The settings of the experiment."""
    config = default()
    config.data.name = "digits"
    config.data.pad_pixels = 1
    config.model.branching = (1, 4, 4)
    config.model.resnet.unit = "basic"
    config.model.resnet.stem_width = 8
    config.model.resnet.widths = (16, 32, 48)
    config.model.resnet.units = (1, 1, 1)
    config.model.resnet.strides = (2, 2, 1)
    config.optimizer.learning_rate = 0.1
    config.training.epochs = 25.0
    config.training.batch_size = 64
    config.training.deterministic = True
    # The bar moves often, and nothing is printed before the end.
    config.training.steps_per_call = 25
    config.training.checkpoint_every_epochs = 25.0
    config.training.validate_every_epochs = 25.0
    return config
