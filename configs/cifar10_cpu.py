"""CIFAR-10 on a CPU: eight small networks of basic units in four blocks.

    hne-train --config=configs/cifar10_cpu.py --workdir=runs/cifar10_cpu \\
        --config.data.download=True

Two hours on 2 cores. Test accuracy 89.19% with one leaf and 90.05% with eight,
see results/cifar10_cpu.md; `hne_tf.from_pretrained("cifar10_cpu")` loads it. Its wide
blocks compute on few pixels.
"""

import ml_collections

from hne_tf.training.config import default


def get_config() -> ml_collections.ConfigDict:
    """The settings of the experiment."""
    config = default()
    config.data.name = "cifar10"
    config.data.pad_pixels = 4
    config.data.flip = True
    config.model.branching = (1, 2, 2, 2)
    config.model.resnet.unit = "basic"
    config.model.resnet.stem_width = 16
    config.model.resnet.widths = (32, 64, 88, 64)
    config.model.resnet.units = (1, 1, 1, 1)
    config.model.resnet.strides = (2, 2, 2, 1)
    config.objective.hierarchical.ramp_epochs = 4.0
    config.optimizer.learning_rate = 0.1
    config.training.epochs = 45.0
    return config
