"""What a run's settings describe: tree, network, factory, model, objective."""

import dataclasses
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import ml_collections

from hne_tf import import_path, objectives
from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.image_spec import ImageSpec
from hne_tf.models import architectures, averaging, layers
from hne_tf.models.architectures import Architecture
from hne_tf.models.ensemble import Ensemble, TreeEnsemble
from hne_tf.models.grouped_ensemble import GroupedEnsemble
from hne_tf.models.layers.factory import LayerFactory
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.training.config import settings_of
from hne_tf.training.fine_tuning import teachers
from hne_tf.tree import Paths, Tree


def tree(config: ml_collections.ConfigDict) -> Paths:
    """The tree that the model section describes."""
    if has_exits(config):
        return Exits(architecture(config).blocks)
    return Tree(tuple(config.model.branching))


def check_model(config: ml_collections.ConfigDict) -> None:
    """Checks what can be checked of the model before the data are there.

    Raises:
      InputError: as `tree` and `architecture`.
    """
    tree(config)
    if not is_given(config):
        architecture(config)
    elif not config.model.keras.builder:
        raise InputError(
            "model.keras.builder must be an import path such as keras.applications.Xception, or "
            "a .keras file, got none"
        )
    elif config.training.precision != "float32":
        raise InputError(
            "training.precision must be float32 for a Keras model, whose layers have dtypes of "
            f"their own, got {config.training.precision!r}"
        )


def is_given(config: ml_collections.ConfigDict) -> bool:
    """Whether the network is a Keras model that a builder gives."""
    return architectures.find(config.model.architecture).defaults is not None


def has_exits(config: ml_collections.ConfigDict) -> bool:
    """Whether the model is a single network with exits."""
    return architectures.find(config.model.architecture).exits


def architecture(config: ml_collections.ConfigDict) -> Architecture:
    """The network that the model section describes.

    Raises:
      InputError: for an unknown architecture or settings that it does not take.
    """
    model = config.model
    entry = architectures.find(model.architecture)
    if is_given(config):
        settings_of(model, model.architecture)
        return entry.kind.from_config(_network(config)["architecture"])
    settings = {
        name: value
        for name, value in settings_of(model, model.architecture).to_dict().items()
        if value is not None
    }
    fields = {field.name: field for field in dataclasses.fields(entry.kind)}
    _check_known("model", model.architecture, settings, fields)
    if presets := entry.kind.presets:
        if model.preset not in presets:
            raise InputError(f"preset must be one of {', '.join(presets)}, got {model.preset!r}")
        return dataclasses.replace(presets[model.preset], **settings)
    needed = [name for name, field in fields.items() if _is_required(field)]
    if missing := [name for name in needed if name not in settings]:
        raise InputError(f"model.settings must have {', '.join(missing)} for {model.architecture}")
    return entry.kind(**settings)


def _network(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The cut network of a Keras model with the `mean` and `std` of its images."""
    try:
        return json.loads(config.model.keras.network)
    except ValueError:
        raise InputError(
            "model.keras.network must be what a run writes into it, got "
            f"{config.model.keras.network!r:.50}"
        ) from None


def model_images(config: ml_collections.ConfigDict, images: ImageSpec) -> ImageSpec:
    """Images of a data set with the normalisation of the model."""
    if not is_given(config):
        return images
    network = _network(config)
    return dataclasses.replace(images, mean=network["mean"], std=network["std"])


def _check_known(section: str, name: str, settings: Iterable[str], known: Iterable[str]) -> None:
    """Raises `InputError` for a setting that a class of the user's own does not take."""
    if unknown := set(settings) - set(known):
        raise InputError(
            f"{section}.settings of {name} must be some of {', '.join(known)}, "
            f"got {', '.join(sorted(unknown))}"
        )


def _is_required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def is_grouped(config: ml_collections.ConfigDict, accelerated: bool) -> bool:
    """Whether a run trains the grouped form of its model; see `config.training.factory`.

    Raises:
      InputError: if `training.factory` is not auto, branched or grouped.
    """
    groupable = architectures.find(config.model.architecture).kind.groupable
    choices = {"auto": accelerated and groupable, "branched": False, "grouped": True}
    choice = config.training.factory
    if choice not in choices:
        raise InputError(f"training.factory must be one of {', '.join(choices)}, got {choice!r}")
    return choices[choice]


def training_layers(
    config: ml_collections.ConfigDict, replicas: int = 1, grouped: bool = False
) -> TrainingLayers:
    """The training factory with the config's weight decay and batch norm.

    Args:
      config: settings of the run.
      replicas: devices that it is mirrored over.
      grouped: whether its layers compute all nodes of a block.

    Raises:
      InputError: if `synchronized_norm` or `fused_norm` is not auto, on or off,
        both are on, or the latter under another backend than TensorFlow.
    """
    on_tensorflow = keras.backend.backend() == "tensorflow"
    synchronized = _switch(
        "distribution.synchronized_norm", config.distribution.synchronized_norm, replicas > 1
    )
    # Elsewhere norms see the batch of all devices without being told.
    synchronized = synchronized and on_tensorflow
    fused = _switch(
        "training.fused_norm", config.training.fused_norm, on_tensorflow and not synchronized
    )
    if fused and not on_tensorflow:
        raise InputError(
            "training.fused_norm must be auto or off under KERAS_BACKEND="
            f"{keras.backend.backend()}, got on"
        )
    name = f"{'Fused' if fused else ''}{'Grouped' if grouped else 'Training'}Layers"
    factory = getattr(layers, name)
    section = config.optimizer
    return factory(
        # AdamW takes its decay apart from the loss.
        0.0 if section.name == "adamw" else section.weight_decay,
        section.norm_momentum,
        synchronized,
        # Elsewhere XLA compiles the step.
        shifted=not on_tensorflow,
        branch_gradients=section.branch_gradients,
    )


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
    grouped = is_grouped(config, accelerated)
    factory = training_layers(config, replicas, grouped)
    factory = dataclasses.replace(factory, precision=precision)
    if not grouped:
        return ensemble(config, factory, images)
    return GroupedEnsemble(
        architecture(config),
        tree(config),
        model_images(config, images),
        dataclasses.replace(factory, split=not accelerated),
        config.objective.average,
    )


def batch_parts(config: ml_collections.ConfigDict, replicas: int) -> int:
    """The parts that each device computes its part of a batch in, one after the other.

    Raises:
      InputError: if the batch does not divide into them.
    """
    parts, batch_size = config.training.accumulate_steps, config.training.batch_size
    if (views := len(config.data.views)) and batch_size % (views * replicas):
        raise InputError(
            f"training.batch_size must divide into the {views} data.views on each of {replicas} "
            f"devices, got {batch_size}"
        )
    if parts < 1 or batch_size % (parts * replicas):
        raise InputError(
            f"training.accumulate_steps must divide the {batch_size // replicas} images that "
            f"a device gets of a batch, got {parts}"
        )
    return parts


def _switch(field: str, choice: str, auto: bool) -> bool:
    """Whether a setting that may be left to the project is on."""
    choices = {"auto": auto, "on": True, "off": False}
    if choice not in choices:
        raise InputError(f"{field} must be auto, on or off, got {choice!r}")
    return choices[choice]


def ensemble(
    config: ml_collections.ConfigDict, factory: LayerFactory, images: ImageSpec
) -> TreeEnsemble:
    """The untrained model of a run, built by any factory."""
    return TreeEnsemble(
        architecture(config),
        tree(config),
        model_images(config, images),
        factory,
        config.objective.average,
    )


def objective(
    config: ml_collections.ConfigDict, steps_per_epoch: float | None
) -> keras.losses.Loss:
    """The loss that the objective section describes.

    A class is given its settings and, where its constructor takes them, the `sizes` of
    the tree's ensembles, the `average`, the `label_smoothing` and the number of `views`.
    Its setting `models` names trained networks, which it is given, see `teachers.load`.

    Args:
      config: settings of the run.
      steps_per_epoch: what turns settings in epochs into steps; None for the objective
        as it is at the end of the run, when nothing ramps any more.

    Raises:
      InputError: for an unknown name or a value out of range.
    """
    section = config.objective
    averaging.check_fits(section.average, has_exits(config))
    kind = objectives.find(section.name)
    known = inspect.signature(kind).parameters
    settings = _in_steps(settings_of(section, section.name).to_dict(), steps_per_epoch)
    _check_known("objective", section.name, settings, known)
    if "models" in settings:
        settings["models"] = teachers.load(settings["models"])
    shared = _shared(config, known)
    # Answers are kept in inference; leaves learn of the new ones.
    if "average" in shared:
        shared["average"] = averaging.uncached(section.average)
    if "label_smoothing" in known:
        shared["label_smoothing"] = section.label_smoothing
    elif section.label_smoothing:
        raise InputError(
            f"objective.label_smoothing must be 0 for {section.name}, which does not take it, "
            f"got {section.label_smoothing}"
        )
    if views := _views(config):
        if "views" not in known:
            raise InputError(
                f"data.views must be empty for {section.name}, whose leaves learn together, got "
                f"{tuple(config.data.views)}"
            )
        shared["views"] = views
    return kind(**shared | settings)


def _views(config: ml_collections.ConfigDict) -> int:
    """The number of views that leaves learn from, 0 if there are none."""
    views = len(config.data.views)
    if views and config.training.accumulate_steps > 1:
        raise InputError(
            "training.accumulate_steps must be 1 with data.views, whose rows lie in turn, got "
            f"{config.training.accumulate_steps}"
        )
    if views > tree(config).leaves:
        raise InputError(
            f"data.views must be at most as many as the {tree(config).leaves} leaves, got {views}"
        )
    return views


def metrics(config: ml_collections.ConfigDict) -> list[keras.metrics.Metric]:
    """The user's own metrics, which validation and evaluation measure besides.

    A class is given, where its constructor takes them, the `sizes` of the tree's
    ensembles and the `average`.

    Raises:
      InputError: for a path at which there is no metric.
    """
    kinds = [import_path.load("training.metrics", path) for path in config.training.metrics]
    for kind in kinds:
        if not issubclass(kind, keras.metrics.Metric):
            raise InputError(
                "training.metrics must name subclasses of keras.metrics.Metric, got "
                f"{kind.__module__}:{kind.__name__}"
            )
    return [kind(**_shared(config, inspect.signature(kind).parameters)) for kind in kinds]


def _shared(config: ml_collections.ConfigDict, known: Iterable[str]) -> dict[str, Any]:
    """What objectives and metrics are given of the model, where they know it."""
    shared = {"sizes": tree(config).sizes, "average": config.objective.average}
    return {name: value for name, value in shared.items() if name in known}


def _in_steps(settings: Mapping[str, Any], steps_per_epoch: float | None) -> dict[str, Any]:
    """The settings with those in epochs turned into steps, at least 1 unless there are none."""
    converted = {}
    for name, value in settings.items():
        if not name.endswith("_epochs"):
            converted[name] = value
            continue
        if not value >= 0:
            raise InputError(f"{name} must be 0 or more, got {value}")
        ramps = value > 0 and steps_per_epoch is not None
        steps = max(1, round(value * steps_per_epoch)) if ramps else 0
        converted[f"{name.removesuffix('_epochs')}_steps"] = steps
    return converted
