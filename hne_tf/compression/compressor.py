"""From a trained run to a compressed one."""

import contextlib
import dataclasses
import pathlib
import shutil
import typing
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hne_tf.compression import fine_tuning
from hne_tf.compression.report import accuracy_table, kernel_report, kernel_table
from hne_tf.errors import InputError
from hne_tf.evaluation.evaluation import inference, measure
from hne_tf.export.post_training import post_training, quantized_kernels
from hne_tf.files import write_json
from hne_tf.metrics import EnsembleAccuracy
from hne_tf.models import weights
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.folding import deployed
from hne_tf.models.layers.quantized import QuantizedLayers
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.training.trained import TrainedRun
from hne_tf.training.workdir import Workdir

if typing.TYPE_CHECKING:
    import tf_keras

    from hne_tf.compression import treatments

METHODS = ("quantize", "prune", "cluster")
FORMAT = 1
# Enough for ranges: they take in the extremes, which further images hardly move.
_REPRESENTATIVE_IMAGES = 1024


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a run is compressed.

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
    run: TrainedRun,
    settings: Settings,
    output: pathlib.Path,
    report: Callable[[str], None] = print,
) -> None:
    """Compresses a run into a new folder, which `trained.restore` takes as a run.

    The folder appears when everything in it is written: `config.json`, the
    run's; `weights.npz`, canonical; `compression.json`, with the settings, the
    layer factory, what was done to the kernels, and the accuracy per ensemble
    size on the validation split before and after.

    Args:
      run: a trained run. One that is compressed already can only be quantised,
        and without training, which would undo its zeros and clusters.
      settings: what to do.
      output: folder that does not exist yet.
      report: gets a line or table per stage.

    Raises:
      InputError: if the folder exists, the run cannot be compressed this way,
        or the loss does not stay finite.
    """
    _check(run, settings)
    _check_absent(output)
    model = deployed(run.model)
    before = _accuracy(run, model)
    compressed, treated = _METHODS[settings.method](run, model, settings)
    accuracy = {
        "split": "validation",
        "examples": run.data_set.examples("validation"),
        "before": before,
        "after": _accuracy(run, compressed),
    }
    kernels = kernel_report(compressed, treated)
    with _new_workdir(output) as workdir:
        weights.save_npz(workdir.weights_path, weights.read(compressed))
        write_json(workdir.config_path, run.config.to_dict())
        description = {
            "format": FORMAT,
            "settings": settings.used(),
            "factory": type(compressed.factory).__name__,
            "step": run.step,
            "total_steps": run.total_steps,
            "kernels": kernels,
            "accuracy": accuracy,
        }
        write_json(workdir.compression_path, description)
    report(f"{kernel_table(kernels)}\n")
    report(f"Accuracy on the validation split:\n\n{accuracy_table(before, accuracy['after'])}\n")
    report(f"compressed run: {output}")


def _check(run: TrainedRun, settings: Settings) -> None:
    """Raises `InputError` if a run cannot be compressed this way."""
    factory, architecture = run.model.factory, run.model.architecture
    if not architecture.quantizable:
        raise InputError(
            f"only a quantizable architecture is compressed, got {type(architecture).__name__}"
        )
    if isinstance(factory, QuantizedLayers):
        raise InputError("a quantised run cannot be compressed again; take the run it was made of")
    untrained = settings.method == "quantize" and not settings.epochs
    if not isinstance(factory, TrainingLayers) and not untrained:
        raise InputError(
            "a pruned or clustered run can only be quantised without training "
            f"(method quantize, epochs 0), got method {settings.method}, epochs {settings.epochs}"
        )


Compressed = tuple[TreeEnsemble, frozenset[str]]


def _quantize(run: TrainedRun, model: TreeEnsemble, settings: Settings) -> Compressed:
    batch_size = run.config.training.batch_size
    batches = run.data_set.train_batches(
        batch_size=batch_size,
        start_step=0,
        total_steps=-(-_REPRESENTATIVE_IMAGES // batch_size),
        seed=run.config.seed,
    )
    quantized = post_training(model, (images for images, _ in batches))
    if settings.epochs:
        from hne_tf.compression import treatments

        treatment = treatments.train_quantized(_flat(run, model), quantized)
        weights.load(quantized, _fine_tuned(run, treatment, settings))
    return quantized, quantized_kernels(quantized)


def _prune(run: TrainedRun, model: TreeEnsemble, settings: Settings) -> Compressed:
    from hne_tf.compression import treatments

    steps = fine_tuning.steps_of(run, settings.epochs)
    treatment = treatments.prune(_flat(run, model), steps, settings.sparsity, settings.structure)
    weights.load(model, _fine_tuned(run, treatment, settings))
    return model, treatment.treated


def _cluster(run: TrainedRun, model: TreeEnsemble, settings: Settings) -> Compressed:
    from hne_tf.compression import treatments

    treatment = treatments.cluster(_flat(run, model), settings.clusters)
    weights.load(model, _fine_tuned(run, treatment, settings))
    return model, treatment.treated


_METHODS = {"quantize": _quantize, "prune": _prune, "cluster": _cluster}


def _flat(run: TrainedRun, model: TreeEnsemble) -> "tf_keras.Model":
    """The deploy model for TFMOT, with its weights and the run's weight decay."""
    from hne_tf.compression import flat

    flattened = flat.flat_model(model, run.config.optimizer.weight_decay)
    flat.load(flattened, weights.read(model))
    return flattened


def _fine_tuned(
    run: TrainedRun, treatment: "treatments.Treatment", settings: Settings
) -> dict[str, np.ndarray]:
    """Trains a treated model; returns its canonical weights without the treatment's wrappers."""
    steps = fine_tuning.steps_of(run, settings.epochs)
    fine_tuning.fine_tune(treatment.model, run, steps, settings.learning_rate)
    return treatment.strip()


def _accuracy(run: TrainedRun, model: TreeEnsemble) -> dict[str, float]:
    """Accuracy on the validation split by ensemble size."""
    sizes = model.tree.sizes
    metric = EnsembleAccuracy(sizes, run.config.objective.average)
    batches = run.data_set.evaluation_batches("validation", 256)
    measured = measure(inference(model), batches, [metric])
    return {str(size): measured[f"accuracy_{size}"] for size in sizes}


@contextlib.contextmanager
def _new_workdir(output: pathlib.Path) -> Iterator[Workdir]:
    """Gives a folder to write, renamed to `output` when it is complete."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        yield Workdir(temporary)
        # A rename onto an empty folder would succeed.
        _check_absent(output)
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_absent(output: pathlib.Path) -> None:
    if output.exists():
        raise InputError(f"--output must be a new folder, got {output}, which exists")
