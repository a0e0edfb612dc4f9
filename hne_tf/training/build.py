"""What a run's settings describe: tree, network, factory, model, objective."""

import dataclasses
from typing import Any, TypeVar

import keras
import ml_collections

from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.image_spec import ImageSpec
from hne_tf.models.architectures import mobilenet_v2, msdnet, resnet
from hne_tf.models.ensemble import Architecture, Ensemble, TreeEnsemble
from hne_tf.models.grouped_ensemble import GroupedEnsemble
from hne_tf.models.layers.factory import LayerFactory, TrainingLayers
from hne_tf.models.layers.fused import FusedGroupedLayers, FusedTrainingLayers
from hne_tf.models.layers.grouped import GroupedLayers
from hne_tf.objectives import losses
from hne_tf.tree import Paths, Tree

_Layers = TypeVar("_Layers", bound=TrainingLayers)

# Presets of each architecture; those with exits are single networks.
_WITH_EXITS = ("multi_exit", "msdnet")
_PRESETS = {
    "resnet": resnet.PRESETS,
    "mobilenet_v2": mobilenet_v2.PRESETS,
    "multi_exit": resnet.PRESETS,
    "msdnet": msdnet.PRESETS,
}
# Fields of the model section that are no settings of the architecture itself.
_CHOICES = ("architecture", "branching", "preset")


def tree(config: ml_collections.ConfigDict) -> Paths:
    """The tree that the model section describes."""
    if has_exits(config):
        return Exits(architecture(config).blocks)
    return Tree(tuple(config.model.branching))


def has_exits(config: ml_collections.ConfigDict) -> bool:
    """Whether the model is a single network with exits."""
    return config.model.architecture in _WITH_EXITS


def architecture(config: ml_collections.ConfigDict) -> Architecture:
    """The network that the model section describes.

    Raises:
      InputError: for an unknown architecture or settings that it does not take.
    """
    model = config.model
    if model.architecture not in _PRESETS:
        raise InputError(
            f"architecture must be one of {', '.join(_PRESETS)}, got {model.architecture!r}"
        )
    presets = _PRESETS[model.architecture]
    if model.preset not in presets:
        raise InputError(f"preset must be one of {', '.join(presets)}, got {model.preset!r}")
    preset = presets[model.preset]
    fields = [field.name for field in dataclasses.fields(preset)]
    settings = {name: value for name, value in model.items() if value and name not in _CHOICES}
    for name, value in settings.items():
        if name not in fields:
            raise InputError(
                f"model.{name} must be {type(value)()!r} for {model.architecture}, "
                f"whose settings are {', '.join(fields)}, got {value!r}"
            )
    return dataclasses.replace(preset, **settings)


def is_grouped(config: ml_collections.ConfigDict, accelerated: bool) -> bool:
    """Whether a run trains the grouped form of its model; see `config.training.factory`.

    Raises:
      InputError: if `training.factory` is not auto, branched or grouped.
    """
    choices = {"auto": accelerated, "branched": False, "grouped": True}
    choice = config.training.factory
    if choice not in choices:
        raise InputError(f"training.factory must be one of {', '.join(choices)}, got {choice!r}")
    return choices[choice]


def training_layers(config: ml_collections.ConfigDict, replicas: int = 1) -> TrainingLayers:
    """The training factory with the config's weight decay and batch norm.

    Raises:
      InputError: if `synchronized_norm` or `fused_norm` is not auto, on or off,
        or both are on.
    """
    return _training_layers(config, replicas, TrainingLayers, FusedTrainingLayers)


def training_model(
    config: ml_collections.ConfigDict,
    images: ImageSpec,
    accelerated: bool = False,
    replicas: int = 1,
    precision: str = "float32",
) -> Ensemble:
    """The untrained model of a run in the form that it is trained in.

    Args:
      config: settings of the run.
      images: shape, classes and normalisation of the images.
      accelerated: whether it runs on an accelerator.
      replicas: devices that it is mirrored over.
      precision: of its layers; weights are the same in each.

    Raises:
      InputError: as `is_grouped` and `training_layers`.
    """
    if not is_grouped(config, accelerated):
        layers = dataclasses.replace(training_layers(config, replicas), precision=precision)
        return ensemble(config, layers, images)
    layers = dataclasses.replace(
        _training_layers(config, replicas, GroupedLayers, FusedGroupedLayers),
        precision=precision,
        split=not accelerated,
    )
    return GroupedEnsemble(
        architecture(config), tree(config), images, layers, config.objective.average
    )


def _training_layers(
    config: ml_collections.ConfigDict, replicas: int, plain: type[_Layers], fused: type[_Layers]
) -> _Layers:
    """One of two factories, by whether norms are fused."""
    synchronized = _switch(
        "distribution.synchronized_norm", config.distribution.synchronized_norm, replicas > 1
    )
    is_fused = _switch("training.fused_norm", config.training.fused_norm, not synchronized)
    factory = fused if is_fused else plain
    return factory(config.optimizer.weight_decay, config.optimizer.norm_momentum, synchronized)


def _switch(field: str, choice: str, auto: bool) -> bool:
    """Whether a setting that may be left to the project is on."""
    choices = {"auto": auto, "on": True, "off": False}
    if choice not in choices:
        raise InputError(f"{field} must be auto, on or off, got {choice!r}")
    return choices[choice]


def ensemble(
    config: ml_collections.ConfigDict, layers: LayerFactory, images: ImageSpec
) -> TreeEnsemble:
    """The untrained model of a run, built by any factory."""
    return TreeEnsemble(
        architecture(config), tree(config), images, layers, config.objective.average
    )


def objective(
    config: ml_collections.ConfigDict, steps_per_epoch: float, iterations: Any
) -> keras.losses.Loss:
    """The loss that the objective section describes.

    Args:
      config: settings of the run.
      steps_per_epoch: what turns `ramp_epochs` into steps.
      iterations: the optimiser's step counter, which drives the ramp.

    Raises:
      InputError: for an unknown name or a value out of range.
    """
    section = config.objective
    sizes = tree(config).sizes
    if section.average == "last" and not has_exits(config):
        raise InputError(
            "average must be logits or probabilities for a tree, whose leaves are equals, "
            f"got {section.average!r}, which is for {' and '.join(_WITH_EXITS)}"
        )
    alpha = section.alpha
    if section.ramp_epochs < 0:
        raise InputError(f"ramp_epochs must be 0 or more, got {section.ramp_epochs}")
    if section.ramp_epochs > 0:
        steps = max(1, round(section.ramp_epochs * steps_per_epoch))
        alpha = losses.LinearRamp(alpha, steps, iterations)
    distillation = {
        "alpha": alpha,
        "temperature": section.temperature,
        "combine": section.combine,
        "average": section.average,
    }
    builders = {
        "independent": losses.IndependentLoss,
        "subtree": lambda: losses.SubtreeLoss(sizes, section.average),
        "codistillation": lambda: losses.CoDistillationLoss(**distillation),
        "hierarchical": lambda: losses.HierarchicalDistillationLoss(sizes, **distillation),
    }
    if section.name not in builders:
        raise InputError(f"objective must be one of {', '.join(builders)}, got {section.name!r}")
    return builders[section.name]()
