"""The settings of a run. Imports no TensorFlow, so that flags are checked at once."""

import hashlib
import json
import math
from typing import Any

import ml_collections

from hne_tf.errors import InputError

# Where data lie and come from is no setting of an experiment, nor is what to do if some are broken
# or how layers are computed.
_CIRCUMSTANCES = (
    "data.data_dir",
    "data.download",
    "data.skip_corrupt",
    "training.factory",
    "distribution.operation_threads",
)


def default() -> ml_collections.ConfigDict:
    """Every field that a run has; experiments in `configs/` set some of them."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "data": {
                # digits, cifar10, cifar100, imagenet2012 or image_folder.
                "name": "digits",
                # Where TFDS keeps its sets, or the image folder; TFDS's own default if empty.
                "data_dir": "",
                # Downloads a set that is missing.
                "download": False,
                # Pixels a side that pictures are resized to, before augmentation; 0 leaves
                # them as they are, but those of ImageNet and image folders differ.
                "image_size": 0,
                # Of these, the central square with sides of this share of the shorter
                # side (0.875 for "resize to 256, crop 224"); 0 for the whole picture.
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
                # A fixed stratified part of the training split; 0 for all of it.
                "train_examples": 0,
            },
            "model": {
                # resnet and mobilenet_v2: a tree of networks. multi_exit and msdnet: one
                # network, a residual or a multi-scale dense one, with an exit after each
                # block.
                "architecture": "resnet",
                # Of a tree; networks with exits have none.
                "branching": (1, 2, 2, 2, 2),
                # small or large: five blocks of three bottleneck units; the four blocks
                # of a mobilenet_v2 in half or in full width; five or eleven blocks of an
                # msdnet.
                "preset": "small",
                # What is set here replaces the preset's: bottleneck or basic
                # units; width, number of units and first stride of each block, or of
                # each of mobilenet_v2's seven stages, which scale their widths.
                "unit": "",
                "widths": (),
                "units": (),
                "strides": (),
                "stem_width": 0,
                "width_multiplier": 0.0,
                "stem_stride": 0,
                # Of an msdnet, whose units are layers: see hne_tf/models/architectures/msdnet.py.
                "growth": 0,
                "scale_factors": (),
                "bottlenecks": (),
                "reduction": 0.0,
                "head_width": 0,
            },
            # Of the objective and the learning rate: what results/grid_digits.md shows to be best.
            "objective": {
                # independent, subtree, codistillation or hierarchical.
                "name": "hierarchical",
                "alpha": 0.5,
                "temperature": 2.0,
                # Epochs over which alpha grows from 0; 0 for a constant alpha.
                "ramp_epochs": 0.0,
                "combine": "added",
                # The answer of size n: the mean logits or probabilities of the first n
                # leaves or exits; with exits also last, the n-th exit alone.
                "average": "logits",
            },
            "optimizer": {
                "learning_rate": 0.2,
                "warmup_epochs": 1.0,
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "norm_momentum": 0.9,
            },
            "training": {
                "epochs": 300.0,
                "batch_size": 128,
                "steps_per_call": 50,
                "checkpoint_every_epochs": 1.0,
                "keep_checkpoints": 3,
                "validate_every_epochs": 1.0,
                # A resumed run ends with the same bits. Slower on some devices; pictures
                # are decoded one batch at a time. Data are the same in any case.
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
                # Of an average of the weights, which is validated, evaluated and
                # exported instead of them, e.g. 0.999; 0 for none.
                "ema_momentum": 0.0,
            },
            "distribution": {
                # Splits the CPU into this many devices where there is no GPU.
                "logical_devices": 1,
                # CPU threads that compute an operation, while others compute those of other
                # branches. 0: what `distribution.operation_threads` finds best.
                "operation_threads": 0,
                # auto: synchronised on more than one replica; else on or off.
                "synchronized_norm": "auto",
            },
        }
    )


def from_json(fields: dict[str, Any]) -> ml_collections.FrozenConfigDict:
    """Settings read from JSON.

    Fields that are newer than the file have their default, the value that they
    had all along.
    """
    config = default()
    config.update(_with_tuples(fields))
    return ml_collections.FrozenConfigDict(config)


def _with_tuples(value: Any) -> Any:
    """JSON has lists where settings have tuples."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """Checks what holds for numbers in general; ranges are up to what takes a setting.

    Raises:
      InputError: for a setting that is infinite or not a number, or a seed outside
        0 to 2**32 - 1.
    """
    for field, value in _flat(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{field} must be a finite number, got {value}")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed must lie in 0 to {2**32 - 1}, got {config.seed}")


def digest(config: ml_collections.ConfigDict) -> str:
    """SHA-256 of the settings, whatever their order and wherever the data lie."""
    text = json.dumps(_flat(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(
    old: ml_collections.ConfigDict, new: ml_collections.ConfigDict
) -> list[tuple[str, tuple[Any, Any]]]:
    """Fields that differ, `("objective.alpha", (0.5, 0.25))`, in order of their names.

    Where the data lie, and whether corrupt ones are skipped, does not count.
    """
    before, after = _flat(old), _flat(new)
    return [
        (field, (before.get(field), after.get(field)))
        for field in sorted(before.keys() | after.keys())
        if before.get(field) != after.get(field)
    ]


def _flat(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Settings by dotted name, without the circumstances."""
    fields = {
        f"{section}.{name}" if isinstance(values, dict) else section: value
        for section, values in config.to_dict().items()
        for name, value in (values.items() if isinstance(values, dict) else [(section, values)])
    }
    return {name: value for name, value in fields.items() if name not in _CIRCUMSTANCES}
