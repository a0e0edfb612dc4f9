"""ImageNet as in the paper: eight MobileNetV2 of half width in four blocks, 90 epochs.

    hne-train --config=configs/imagenet_small.py --workdir=runs/imagenet_small \\
        --config.data.data_dir=/data/tfds

For a machine of several GPUs and 160 GB for the data, see "ImageNet" in
README.md: 432,832 steps of 256 images. It has not been run here, so neither its
time nor an accuracy is stated.

The paper's ensembles for ImageNet are of MobileNetV2, too. Blocks and widths are
the project's own preset `small`; augmentation, batch size, epochs and weight
decay are usual ones for MobileNetV2. They need not be the paper's in every number.
"""

import ml_collections

from hne_tf.training.config import default


def get_config() -> ml_collections.ConfigDict:
    """The settings of the experiment."""
    config = default()
    config.data.name = "imagenet2012"
    config.data.image_size = 224
    config.data.central_crop = 0.875
    config.data.random_resized_crop = 0.08
    config.data.flip = True
    config.data.color_jitter = 0.4
    config.model.architecture = "mobilenet_v2"
    config.model.preset = "small"
    config.model.branching = (1, 2, 2, 2)
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.weight_decay = 4e-5
    config.optimizer.learning_rate = 0.1
    config.training.epochs = 90.0
    config.training.batch_size = 256
    return config
