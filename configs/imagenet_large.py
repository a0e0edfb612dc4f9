"""ImageNet as in the paper: eight MobileNetV2 of full width in four blocks, 90 epochs.

    hne-train --config=configs/imagenet_large.py --workdir=runs/imagenet_large \\
        --config.data.data_dir=/data/tfds

For a machine of several GPUs and 160 GB for the data, see "ImageNet" in
README.md: 432,832 steps of 256 images. It has not been run here, so neither its
time nor an accuracy is stated.

The paper's ensembles for ImageNet are of MobileNetV2, too. Blocks and widths are
the project's own preset `large`; augmentation, batch size, epochs and weight
decay are usual ones for MobileNetV2. They need not be the paper's in every number.
"""

import ml_collections

from configs import imagenet_small


def get_config() -> ml_collections.ConfigDict:
    """The settings of the experiment."""
    config = imagenet_small.get_config()
    config.model.preset = "large"
    return config
