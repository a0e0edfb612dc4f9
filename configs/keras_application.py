"""A tree of a model of keras.applications, for a folder of pictures of your own.

    hne-train --config=configs/keras_application.py --workdir=runs/flowers \\
        --config.data.data_dir=flowers

`flowers` has folders `train` and `test` with one folder a class. EfficientNetV2B0 is cut in three
blocks. All nodes begin with ImageNet's weights, which Keras downloads, and each of the four leaves
has a new classifier. Early blocks learn at lower rates, and batch norms stay as they are. See
docs/your-model.md. It has not been run here, so no accuracy is stated.

Any other functional model: --config.model.keras.builder=my_module.my_model, or a .keras file.
"""

import ml_collections

from hne_tf.training.config import default


def get_config() -> ml_collections.ConfigDict:
    """The settings of the experiment."""
    config = default()
    config.data.name = "image_folder"
    config.data.image_size = 224
    config.data.flip = True
    config.data.random_resized_crop = 0.5
    config.model.architecture = "keras"
    config.model.branching = (1, 2, 2)
    config.model.keras.builder = "keras.applications.EfficientNetV2B0"
    config.model.keras.options = {"include_top": False}
    config.model.keras.classifier = "add"
    config.objective.label_smoothing = 0.1
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.01
    config.optimizer.block_rates = (0.1, 0.3, 1.0)
    config.optimizer.frozen_norms = True
    config.training.batch_size = 32
    config.training.epochs = 10.0
    return config
