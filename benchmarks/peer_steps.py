"""Steps of the tree in other libraries, which `train_step.py` times beside ours.

Each is taken in a process of its own: Keras's backend is a process's.
"""

import itertools
import os
from collections.abc import Callable

import ml_collections
import numpy as np

from hne_tf import hardware
from hne_tf.bin import app
from hne_tf.image_spec import ImageSpec

# Images uint8 [batch, height, width, channels], labels int32 [batch].
Batch = tuple[np.ndarray, np.ndarray]

# Of PyTorch's optimiser: steps take as long at any rate, and weights stay finite at this one.
_RATE = 1e-3


def jax_step(
    config: ml_collections.ConfigDict, images: ImageSpec, batch: Batch
) -> Callable[[], object]:
    """What takes a step as `KERAS_BACKEND=jax hne-train` does, on one device."""
    os.environ["KERAS_BACKEND"] = "jax"
    hardware.keep_freed_memory()
    with app.quiet_import():
        from hne_tf.training.backends import on_jax
        from hne_tf.training.machines.cluster import Cluster
        from hne_tf.training.schedule import Schedule

    # Or the batches of a call would be copied to the device for a single step.
    config.training.steps_per_call = 1
    on_jax.prepare(config)
    devices = on_jax.devices_of(config, Cluster())[:1]
    run = on_jax.run(config, images, Schedule.of(config, 50_000), devices)
    batches = itertools.repeat(batch)
    return lambda: run.take_steps(batches, 1)


def torch_step(
    config: ml_collections.ConfigDict,
    images: ImageSpec,
    batch: Batch,
    threads: int = 0,
    compiled: bool = False,
) -> Callable[[], object]:
    """What takes a step of `torch_tree`, on a GPU if there is one.

    Args:
      config: settings, of which network and optimiser are read.
      images: shape, classes and normalisation of the images.
      batch: that all steps take.
      threads: of a CPU for an operation; 0 for PyTorch's own number.
      compiled: whether torch.compile is used.
    """
    import torch
    import torch_tree

    from hne_tf.models.architectures import ResNet

    if threads:
        torch.set_num_threads(threads)

    resnet, section = ResNet.presets[config.model.preset], config.optimizer
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = torch_tree.TorchTree(
        config.model.branching,
        resnet.widths,
        resnet.units,
        resnet.strides,
        resnet.stem_width,
        len(images.class_names),
        images.mean,
        images.std,
        grouped=config.training.factory == "grouped",
    ).to(device)
    optimizer = torch_tree.sgd(network, section.weight_decay, section.momentum, _RATE)
    on_host = [torch.from_numpy(values) for values in batch]

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch_tree.hierarchical_distillation(network(images), labels.long())

    if compiled:
        loss_of = torch.compile(loss_of)

    def step() -> float:
        loss = loss_of(*(values.to(device) for values in on_host))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
