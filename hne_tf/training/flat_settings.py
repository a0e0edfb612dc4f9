"""The flat form of settings, which was there before architectures and objectives had sub-sections.

Files in that form are read, and digests are taken of it: they name the folders of sweeps and
stand in manifests, so a run of older settings must keep its digest.
"""

from collections.abc import Container, Mapping
from typing import Any

# What a setting of an architecture was where it was not set.
_FLAT_ARCHITECTURE = {
    "unit": "",
    "widths": (),
    "units": (),
    "strides": (),
    "stem_width": 0,
    "width_multiplier": 0.0,
    "stem_stride": 0,
    "growth": 0,
    "scale_factors": (),
    "bottlenecks": (),
    "reduction": 0.0,
    "head_width": 0,
}
# Settings that both kinds of distillation shared.
_FLAT_DISTILLATION = ("alpha", "temperature", "ramp_epochs", "combine")
_SHARING = ("codistillation", "hierarchical")
# All other settings of that form.
_OTHERS = {
    f"{section}.{name}"
    for section, names in {
        "data": "name image_size central_crop pad_pixels flip color_jitter random_resized_crop "
        "train_examples",
        "model": "architecture branching preset",
        "objective": "name average",
        "optimizer": "learning_rate warmup_epochs momentum weight_decay norm_momentum",
        "training": "epochs batch_size steps_per_call checkpoint_every_epochs keep_checkpoints "
        "validate_every_epochs deterministic fused_norm precision accumulate_steps ema_momentum",
        "distribution": "logical_devices synchronized_norm",
    }.items()
    for name in names.split()
} | {"seed"}


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with sub-sections, read from JSON in either form.

    A setting goes to the architecture that the settings choose, one of the
    distillation to both kinds.
    """
    model, objective = dict(fields.get("model", {})), dict(fields.get("objective", {}))
    settings = {name: model.pop(name) for name in _FLAT_ARCHITECTURE if name in model}
    shared = {name: objective.pop(name) for name in _FLAT_DISTILLATION if name in objective}
    if chosen := {name: value for name, value in settings.items() if value}:
        # The default of files that are older than the choice.
        model[model.get("architecture", "resnet")] = chosen
    if shared:
        objective |= dict.fromkeys(_SHARING, shared)
    return {**fields, "model": model, "objective": objective}


def flattened(
    fields: dict[str, Any], used: Container[str], defaults: dict[str, Any]
) -> dict[str, Any]:
    """What a digest is taken of.

    A setting that is newer than this form counts where it differs from its default.

    Args:
      fields: settings by dotted name, `"model.resnet.units"`.
      used: names of those that make a difference to the run.
      defaults: the default settings by dotted name.
    """
    architecture, objective = fields["model.architecture"], fields["objective.name"]
    # Objectives without distillation had its settings, too.
    shared = objective if objective in _SHARING else _SHARING[-1]
    older = {f"model.{architecture}.{name}": f"model.{name}" for name in _FLAT_ARCHITECTURE}
    older |= {f"objective.{shared}.{name}": f"objective.{name}" for name in _FLAT_DISTILLATION}
    result = {f"model.{name}": unset for name, unset in _FLAT_ARCHITECTURE.items()}
    for name, value in fields.items():
        if name in older:
            if value is not None:
                result[older[name]] = value
        elif name in _OTHERS or (name in used and value != defaults.get(name)):
            result[name] = value
    return result
