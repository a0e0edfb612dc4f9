"""From a trained model to a compressed one."""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from hne_tf.compression.fine_tuning import Training, fine_tune
from hne_tf.compression.report import kernel_report, kernel_table
from hne_tf.data.labelled import Labelled
from hne_tf.errors import InputError
from hne_tf.export.post_training import post_training, quantized_kernels
from hne_tf.export.preparation import branched
from hne_tf.models import weights
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.folding import deployed
from hne_tf.models.grouped_ensemble import GroupedEnsemble
from hne_tf.models.layers.quantized import QuantizedLayers
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.objectives import HierarchicalDistillation

if typing.TYPE_CHECKING:
    import tf_keras

    from hne_tf.compression import treatments

METHODS = ("quantize", "prune", "cluster")
# Enough for ranges: they take in the extremes, which further images hardly move.
_REPRESENTATIVE_IMAGES = 1024


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a model is compressed.

    Attributes:
      method: `"quantize"` to 8-bit integers, `"prune"` or `"cluster"`.
      epochs: of fine-tuning; 0, for quantisation without training only.
      learning_rate: of the fine-tuning's first step.
      sparsity: for pruning, share of zeros in each kernel.
      structure: for pruning, `"2:4"` instead of a sparsity, or empty.
      clusters: for clustering, distinct values in each kernel.

    Raises:
      InputError: for a value out of range.
    """

    method: str
    epochs: float = 0.0
    learning_rate: float = 0.01
    sparsity: float = 0.5
    structure: str = ""
    clusters: int = 16

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if not self.epochs >= 0 or (self.epochs == 0 and self.method != "quantize"):
            raise InputError(
                f"epochs must be above 0, or 0 to quantise without training, got {self.epochs} "
                f"for {self.method}"
            )
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 < self.sparsity < 1:
            raise InputError(f"sparsity must lie between 0 and 1, got {self.sparsity}")
        if self.structure not in ("", "2:4"):
            raise InputError(f"structure must be 2:4 or empty, got {self.structure!r}")
        if not self.clusters >= 2:
            raise InputError(f"clusters must be 2 or more, got {self.clusters}")

    def used(self) -> dict[str, Any]:
        """The settings that count for the method."""
        names = ["method", "epochs"]
        if self.epochs:
            names.append("learning_rate")
        if self.method == "prune":
            names.append("structure" if self.structure else "sparsity")
        if self.method == "cluster":
            names.append("clusters")
        return {name: getattr(self, name) for name in names}


def compress(
    model: TreeEnsemble | GroupedEnsemble,
    method: str,
    *,
    train: Labelled,
    loss: keras.losses.Loss | None = None,
    batch_size: int = 64,
    seed: int = 0,
    report: Callable[[str], None] = print,
    **settings: Any,
) -> TreeEnsemble:
    """Compresses a model and fine-tunes it on training images.

    Args:
      model: trained in whatever way; it stays as it is.
      method: `"quantize"`, `"prune"` or `"cluster"`.
      train: training images and labels, see `labelled.batches`.
      loss: what fine-tuning minimises, hierarchical distillation by default.
      batch_size: images per step.
      seed: of the order of images.
      report: gets a table of what was done to the kernels.
      **settings: `epochs`, `learning_rate` and others, see `Settings`.

    Returns:
      The compressed model, for `evaluate`, `export` and `convert_tflite`.

    Raises:
      InputError: for a model, data or a setting that cannot be, or if the loss does
        not stay finite.

    Example:
      >>> small = compress(model, "prune", train=(x_train, y_train), epochs=2, sparsity=0.5)
    """
    chosen = Settings(method, **settings)
    model = branched(model)
    loss = HierarchicalDistillation(model.tree.sizes) if loss is None else loss
    training = Training.of_data(train, model, loss, batch_size, seed)
    result = compressed(model, chosen, training)
    report(kernel_table(result.kernels))
    return result.model


@dataclasses.dataclass(frozen=True)
class Compressed:
    """What came of compressing a model.

    Attributes:
      model: in the deploy factory's form, or that of `QuantizedLayers`.
      kernels: what was done to them, see `report.kernel_report`.
    """

    model: TreeEnsemble
    kernels: list[dict[str, Any]]


def compressed(model: TreeEnsemble, settings: Settings, training: Training) -> Compressed:
    """Compresses a model; one that is compressed already can only be quantised.

    Raises:
      InputError: if the model cannot be compressed this way, or the loss does not
        stay finite.
    """
    check(model, settings)
    result, treated = _METHODS[settings.method](deployed(model), settings, training)
    return Compressed(result, kernel_report(result, treated))


def check(model: TreeEnsemble, settings: Settings) -> None:
    """Raises `InputError` if a model cannot be compressed this way."""
    if not model.architecture.quantizable:
        raise InputError(
            "only a quantizable architecture is compressed, "
            f"got {type(model.architecture).__name__}"
        )
    if isinstance(model.factory, QuantizedLayers):
        raise InputError(
            "a quantised model cannot be compressed again; take the model it was made of"
        )
    untrained = settings.method == "quantize" and not settings.epochs
    if not isinstance(model.factory, TrainingLayers) and not untrained:
        raise InputError(
            "a pruned or clustered model can only be quantised without training "
            f"(method quantize, epochs 0), got method {settings.method}, epochs {settings.epochs}"
        )


_Treated = tuple[TreeEnsemble, frozenset[str]]


def _quantize(model: TreeEnsemble, settings: Settings, training: Training) -> _Treated:
    representative = training.batches(-(-_REPRESENTATIVE_IMAGES // training.batch_size))
    quantized = post_training(model, (images for images, _ in representative))
    if settings.epochs:
        from hne_tf.compression import treatments

        treatment = treatments.train_quantized(_flat(model, training), quantized)
        weights.load(quantized, _fine_tuned(model, treatment, settings, training))
    return quantized, quantized_kernels(quantized)


def _prune(model: TreeEnsemble, settings: Settings, training: Training) -> _Treated:
    from hne_tf.compression import treatments

    steps = training.steps(settings.epochs)
    flattened = _flat(model, training)
    treatment = treatments.prune(flattened, steps, settings.sparsity, settings.structure)
    return _with_fine_tuned(model, treatment, settings, training), treatment.treated


def _cluster(model: TreeEnsemble, settings: Settings, training: Training) -> _Treated:
    from hne_tf.compression import treatments

    treatment = treatments.cluster(_flat(model, training), settings.clusters)
    return _with_fine_tuned(model, treatment, settings, training), treatment.treated


_METHODS = {"quantize": _quantize, "prune": _prune, "cluster": _cluster}


def _flat(model: TreeEnsemble, training: Training) -> "tf_keras.Model":
    """The deploy model for TFMOT, with its weights and the training's weight decay."""
    from hne_tf.compression import flat

    flattened = flat.flat_model(model, training.weight_decay)
    flat.load(flattened, weights.read(model))
    return flattened


def _with_fine_tuned(
    model: TreeEnsemble,
    treatment: "treatments.Treatment",
    settings: Settings,
    training: Training,
) -> TreeEnsemble:
    result = model.rebuilt(model.factory)
    weights.load(result, _fine_tuned(model, treatment, settings, training))
    return result


def _fine_tuned(
    model: TreeEnsemble,
    treatment: "treatments.Treatment",
    settings: Settings,
    training: Training,
) -> dict[str, np.ndarray]:
    """Trains a treated model; returns its canonical weights without the treatment's wrappers."""
    steps = training.steps(settings.epochs)
    fine_tune(treatment.model, model, training, steps, settings.learning_rate)
    return treatment.strip()
