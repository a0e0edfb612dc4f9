"""CIFAR-10 as in the paper: sixteen small networks of five blocks, 300 epochs.

    hne-train --config=configs/cifar10_small.py --workdir=runs/cifar10_small \\
        --config.data.download=True

For a GPU: 105,469 steps of 128 images are days on a CPU. On an H200, by JAX in
bfloat16, they took seven minutes; test accuracy is 90.9% with one leaf and 92.0%
with sixteen, see results/cifar10_gpu.md; `hne_tf.from_pretrained("cifar10_small")`
loads it. Depths and widths are the project's own preset `small`, which need not be
the paper's in every number.
"""

import ml_collections

from hne_tf.training.config import default


def get_config() -> ml_collections.ConfigDict:
    """The settings of the experiment."""
    config = default()
    config.data.name = "cifar10"
    config.data.pad_pixels = 4
    config.data.flip = True
    config.model.preset = "small"
    config.model.branching = (1, 2, 2, 2, 2)
    config.optimizer.learning_rate = 0.1
    config.training.epochs = 300.0
    config.training.batch_size = 128
    return config
