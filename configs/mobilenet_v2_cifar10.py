"""MobileNetV2 trees tried out: eight of half width on CIFAR-10 at 64x64, 316 steps.

    hne-train --config=configs/mobilenet_v2_cifar10.py \\
        --workdir=runs/mobilenet_v2_cifar10 --config.data.download=True

Two minutes on 2 cores. The loss falls from 33.3 over the first 20 steps to 25.7 over
the last 16; test accuracy 40.6% with one leaf and 42.0% with eight, and 42.0% and 41.9%
as a TFLite file of float32 and of int8. The settings are not deterministic: another run
ended with a loss of 26.3, 38.8% and 41.3%. How far longer training goes was not measured.
"""

import ml_collections

from hne_tf.training.config import default


def get_config() -> ml_collections.ConfigDict:
    """The settings of the experiment."""
    config = default()
    config.data.name = "cifar10"
    config.data.image_size = 64
    config.data.pad_pixels = 8
    config.data.flip = True
    config.model.architecture = "mobilenet_v2"
    config.model.branching = (1, 2, 2, 2)
    config.optimizer.learning_rate = 0.05
    config.optimizer.warmup_epochs = 0.1
    config.optimizer.weight_decay = 4e-5
    config.training.batch_size = 64
    config.training.epochs = 0.45
    config.training.steps_per_call = 20
    return config
