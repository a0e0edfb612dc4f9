"""The settings of a run. Imports no TensorFlow, so that flags are checked at once."""

import contextlib
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from hne_tf.data import fingerprint
from hne_tf.data.sets import array_file
from hne_tf.errors import InputError
from hne_tf.models.architectures import ARCHITECTURES, ArchitectureEntry
from hne_tf.objectives import OBJECTIVES
from hne_tf.training import flat_settings

# Where data lie and come from is no setting of an experiment, nor is what to do if some are broken
# or how layers are computed, or what a run keeps of a model.
_CIRCUMSTANCES = (
    "data.data_dir",
    "data.download",
    "data.skip_corrupt",
    "training.factory",
    "model.keras.network",
    "distribution.operation_threads",
)

# What fingerprints the data that have no name and version of their own.
_BY_PLACE = {"image_folder": fingerprint.of_folder, "npz": array_file.fingerprint}


# Sub-sections whose names are up to what takes them.
_OPEN = {"settings", "options"}


def default() -> ml_collections.ConfigDict:
    """Every field that a run has; experiments in `configs/` set some of them."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "data": _data(),
            "model": _model(),
            "objective": _objective(),
            "optimizer": _optimizer(),
            "training": _training(),
            "distribution": _distribution(),
        }
    )


def _data() -> dict[str, Any]:
    """Which pictures, and what becomes of them."""
    return {
        # digits, cifar10, cifar100, imagenet2012, tfds:food101 and other sets of TFDS,
        # image_folder or npz, arrays in a file.
        "name": "digits",
        # Where TFDS keeps its sets (its own default if empty), the image folder or .npz file.
        "data_dir": "",
        # Downloads a set that is missing.
        "download": False,
        # Pixels a side that pictures are resized to, before augmentation; 0 leaves
        # them as they are, but those of ImageNet and image folders differ.
        "image_size": 0,
        # Of these, the central square with sides of this share of the shorter
        # side (0.875 for "resize to 256, crop 224"); 0 for the whole picture. It is
        # a part of what an export's clients do with a picture.
        "central_crop": 0.0,
        # Goes on without pictures that cannot be decoded, and counts them.
        "skip_corrupt": False,
        # Augmentation: zero padding before a random crop, random mirroring,
        # random brightness, contrast and saturation (0.4 for up to 40%), and for
        # ImageNet and image folders a random crop of at least this share of the
        # picture (0.08 is usual), resized. 0 for none.
        "pad_pixels": 0,
        "flip": False,
        "color_jitter": 0.0,
        "random_resized_crop": 0.0,
        # Keras's own RandAugment, up to 1; mixup or cutmix, for soft labels; and
        # RandomErasing, the largest side of its rectangle as a share of the picture's.
        "rand_augment": 0.0,
        "mix": "",
        "random_erasing": 0.0,
        # Views that leaves learn from in turn, ("", "mix=cutmix", "random_erasing=0.5"): a
        # row of a batch belongs to one of them. () for the same rows for all leaves.
        "views": (),
        # A fixed stratified part of the training split; 0 for all of it.
        "train_examples": 0,
    }


def _model() -> dict[str, Any]:
    """Which networks."""
    return {
        # resnet and mobilenet_v2: a tree of networks. multi_exit and msdnet: one
        # network, a residual or a multi-scale dense one, with an exit after each
        # block. keras: any functional Keras model, cut in blocks. my_module:MyNetwork: a
        # class of your own, by its import path.
        "architecture": "resnet",
        # Of a tree; networks with exits have none.
        "branching": (1, 2, 2, 2, 2),
        # small or large: five blocks of three bottleneck units; the four blocks
        # of a mobilenet_v2 in half or in full width; five or eleven blocks of an
        # msdnet.
        "preset": "small",
        # Of a class of your own.
        "settings": {},
        # One for each architecture: what is set here, and not None, replaces the
        # preset's. Of keras see hne_tf/models/functional/settings.py.
        **{name: _unset(entry) for name, entry in ARCHITECTURES.items()},
    }


def _objective() -> dict[str, Any]:
    """What is minimised.

    With the learning rate: what results/grid_digits.md shows to be best.
    """
    return {
        # independent, subtree, codistillation, hierarchical, assistants, boosting or
        # outside, whose models are .keras files, workdirs or my_module:load_teacher; or
        # my_module:MyLoss.
        "name": "hierarchical",
        # The answer of size n: the mean logits or probabilities of the first n
        # leaves or exits, or the sum of their logits; with exits also last, the
        # n-th exit alone. product, cached_logits, cached_last and others lose
        # fewer right answers as leaves are added, see hne_tf/models/averaging.py.
        "average": "logits",
        # Part of a label that is spread evenly over all classes, e.g. 0.1.
        "label_smoothing": 0.0,
        # Of a class of your own.
        "settings": {},
        # One for each objective. alpha grows from 0 over ramp_epochs; 0 for a
        # constant alpha.
        **{name: dict(entry.settings) for name, entry in OBJECTIVES.items()},
    }


def _optimizer() -> dict[str, Any]:
    """How weights are updated, and which."""
    return {
        # sgd, with Nesterov momentum, or adamw.
        "name": "sgd",
        "learning_rate": 0.2,
        # Half of a run that is no longer than the default.
        "warmup_epochs": 1.0,
        # Of adamw it is the first moment's.
        "momentum": 0.9,
        # Of sgd a penalty in the loss, which layers of a Keras model have only if they
        # bring it; of adamw apart from the gradient, for all kernels.
        "weight_decay": 5e-4,
        "norm_momentum": 0.9,
        # For fine-tuning: the learning rate of each block as a part of the whole, 0 for
        # a block that stays as it is; and epochs for which each block does so at the
        # beginning. () for the same rate from the beginning.
        "block_rates": (),
        "frozen_epochs": (),
        # Names of the nodes that are trained, ("block2.node1", "block3.node2"), while all
        # others stay as they are, with training.start_from; () for all nodes.
        "trained_nodes": (),
        # Of what several leaves read, the sum of their gradients or the mean.
        "branch_gradients": "sum",
        # Batch norms keep their statistics, scales and offsets.
        "frozen_norms": False,
    }


def _training() -> dict[str, Any]:
    """How long, and how steps are computed."""
    return {
        "epochs": 300.0,
        # Workdir of a run of the same tree, whose weights this one starts from.
        "start_from": "",
        "batch_size": 128,
        "steps_per_call": 50,
        "checkpoint_every_epochs": 1.0,
        "keep_checkpoints": 3,
        "validate_every_epochs": 1.0,
        # A resumed run ends with the same bits. Slower on some devices. Data are
        # the same in any case.
        "deterministic": False,
        # grouped: a layer computes all nodes of a block; branched: one node. auto:
        # grouped on a GPU. A run keeps to the form it began in.
        "factory": "auto",
        # One kernel per batch norm. auto: unless norms are synchronised; else on or off.
        "fused_norm": "auto",
        # Of activations: float32 or bfloat16; weights stay in float32.
        "precision": "float32",
        # Parts that a batch is computed in, one after the other, for less memory.
        "accumulate_steps": 1,
        # Metrics of your own, ("my_module:MyMetric",), for validation and hne-evaluate.
        "metrics": (),
        # Of an average of the weights, which is validated, evaluated and
        # exported instead of them, e.g. 0.999; 0 for none.
        "ema_momentum": 0.0,
    }


def _distribution() -> dict[str, Any]:
    """Over devices and threads."""
    return {
        # Splits the CPU into this many devices where there is no GPU.
        "logical_devices": 1,
        # CPU threads that compute an operation, while others compute those of other
        # branches. 0: what is best in commands, TensorFlow's own number elsewhere.
        "operation_threads": 0,
        # auto: synchronised on more than one replica; else on or off.
        "synchronized_norm": "auto",
    }


def _unset(entry: ArchitectureEntry) -> dict[str, Any]:
    """The settings of an architecture; where presets have them, none is set but has its type."""
    if entry.defaults is not None:
        return dict(entry.defaults)
    return {name: config_dict.placeholder(kind) for name, kind in entry.settings.items()}


def from_json(fields: dict[str, Any]) -> ml_collections.FrozenConfigDict:
    """Settings read from JSON, also in the form that they had before sub-sections.

    Fields that are newer than the file have their default, the value that they
    had all along.

    Raises:
      InputError: for anything that is not a section with sub-sections of fields of the
        right types.
    """
    config = default()
    sections = {name for name, value in config.items() if isinstance(value, type(config))}
    if not isinstance(fields, dict) or not all(
        isinstance(fields[name], dict) for name in sections & fields.keys()
    ):
        raise InputError(
            f"settings must have the sections {', '.join(sorted(sections))}, got {fields!r:.100}"
        )
    nested = flat_settings.nested(fields)
    if unknown := sorted(_unknown(nested, config.to_dict())):
        raise InputError(f"settings must be named as the default ones, got {unknown[0]!r:.100}")
    try:
        config.update(_with_tuples(nested))
        return ml_collections.FrozenConfigDict(config)
    # What ml_collections raises for values of other types.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"settings must be of the types of the default ones: {reason}") from None


def copy_of(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy to change, in which every field has its type, whether it is set or not."""
    copy = default()
    copy.update(config.to_dict())
    return copy


def settings_of(section: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    """The sub-section of what the section chooses by a `name`, or `settings` for one's own.

    Raises:
      InputError: for `settings` where the name is one of ours.
    """
    if name not in section:
        return section.settings
    if section.settings:
        raise InputError(
            f"settings must be empty for {name}, which has a sub-section of that name, got "
            f"{section.settings.to_dict()}"
        )
    return section[name]


def _with_tuples(value: Any) -> Any:
    """JSON has lists where settings have tuples."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value


def check(config: ml_collections.ConfigDict) -> None:
    """Checks names of fields, and what holds for numbers in general.

    Ranges are up to what takes a setting.

    Raises:
      InputError: for a field that there is not, such as a misspelt one, or is missing;
        for a setting that is infinite or not a number; or a seed outside 0 to 2**32 - 1.
    """
    fields, known = _dotted(config), _dotted(default())
    # What a class of one's own takes, it knows itself.
    own = [name for name in fields if _OPEN & set(name.split(".")[:-1])]
    if unknown := sorted(fields.keys() - known.keys() - set(own)):
        raise InputError(
            "fields of a config must be some of those in hne_tf/training/config.py, got "
            f"{', '.join(unknown)}"
        )
    if missing := sorted(known.keys() - fields.keys()):
        raise InputError(
            "a config must have all fields of hne_tf.training.config.default(), got none of the "
            f"name {', '.join(missing)}"
        )
    if empty := sorted(name for name in known if known[name] is not None and fields[name] is None):
        raise InputError(f"fields of a config must have values, got none for {', '.join(empty)}")
    for field, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{field} must be a finite number, got {value}")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed must lie in 0 to {2**32 - 1}, got {config.seed}")


def digest(config: ml_collections.ConfigDict, pictures: str | None = None) -> str:
    """SHA-256 of the settings, whatever their order and wherever the data lie.

    The pictures of an image folder or `.npz` file count, not its place.

    Args:
      config: the settings.
      pictures: fingerprint of the folder or file; by default of the one that the settings
        name, if it is there.
    """
    fields = _dotted(config)
    counted = flat_settings.flattened(fields, _used(fields), _dotted(default()))
    if config.data.name in _BY_PLACE and (found := pictures or _fingerprint(config.data)):
        counted["data.pictures"] = found
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def _fingerprint(data: ml_collections.ConfigDict) -> str | None:
    path = pathlib.Path(os.path.expanduser(data.data_dir))
    # Whatever is wrong with it is told when the data are loaded.
    with contextlib.suppress(InputError):
        if data.data_dir and path.exists():
            return _BY_PLACE[data.name](path)
    return None


def differences(
    old: ml_collections.ConfigDict, new: ml_collections.ConfigDict
) -> list[tuple[str, tuple[Any, Any]]]:
    """Fields that differ, `("optimizer.momentum", (0.9, 0.5))`, in order of their names.

    Sub-sections count that `new` chooses. Where the data lie, and whether corrupt ones
    are skipped, does not count.
    """
    before, after = _dotted(old), _dotted(new)
    used = _used(before | after)
    return [
        (field, (before.get(field), after.get(field)))
        for field in sorted(used)
        if before.get(field) != after.get(field)
    ]


def _used(fields: dict[str, Any]) -> set[str]:
    """Names of all fields but those of architectures and objectives that are not chosen."""
    others = {f"model.{name}" for name in ARCHITECTURES} - {f"model.{fields['model.architecture']}"}
    others |= {f"objective.{name}" for name in OBJECTIVES} - {
        f"objective.{fields['objective.name']}"
    }
    return {name for name in fields if ".".join(name.split(".")[:2]) not in others}


def _dotted(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Settings by dotted name, without the circumstances."""
    return {
        name: value for name, value in _leaves(config.to_dict(), "") if name not in _CIRCUMSTANCES
    }


def _leaves(fields: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _unknown(
    fields: Mapping[str, Any], known: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    """Dotted names of the settings that are not known; a class of one's own has any."""
    for name, value in fields.items():
        if name not in known:
            yield f"{prefix}{name}"
        elif name not in _OPEN and isinstance(value, dict) and isinstance(known[name], dict):
            yield from _unknown(value, known[name], f"{prefix}{name}.")
