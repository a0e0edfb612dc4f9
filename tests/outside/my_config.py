"""A run of one's own classes: hne-train --config=my_config.py --workdir=runs/mine."""

from hne_tf.training.config import default


def get_config():
    config = default()
    config.data.train_examples = 320
    config.model.architecture = "my_network:SqueezeNet"
    config.model.branching = (2, 2)
    config.model.settings = {"widths": (8, 12), "strides": (1, 2)}
    config.objective.name = "my_objective:QuietTrunk"
    config.objective.settings = {"penalty": 0.001}
    config.optimizer.learning_rate = 0.05
    config.training.metrics = ("my_metric:Confidence",)
    config.training.batch_size = 32
    config.training.epochs = 6.0
    return config
