import ml_collections

from hne_tf.config import default


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
