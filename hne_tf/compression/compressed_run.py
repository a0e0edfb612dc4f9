"""A compressed run: a new folder that is taken as a run."""

import contextlib
import dataclasses
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator

from hne_tf.compression.compressor import Settings, check, compressed
from hne_tf.compression.fine_tuning import Training
from hne_tf.compression.report import accuracy_table, kernel_table
from hne_tf.errors import InputError
from hne_tf.evaluation.evaluation import inference
from hne_tf.evaluation.measuring import measure
from hne_tf.files import write_json
from hne_tf.metrics import EnsembleAccuracy
from hne_tf.models import weights
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.training.trained import TrainedRun
from hne_tf.training.workdir import Workdir

FORMAT = 1


def compress_run(
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
    check(run.model, settings)
    _check_absent(output)
    before = _accuracy(run, run.model)
    result = compressed(run.model, settings, Training.of_run(run))
    accuracy = {
        "split": "validation",
        "examples": run.data_set.examples("validation"),
        "before": before,
        "after": _accuracy(run, result.model),
    }
    with _new_workdir(output) as workdir:
        weights.save_npz(workdir.weights_path, weights.read(result.model))
        write_json(workdir.config_path, run.config.to_dict())
        write_json(workdir.data_path, dataclasses.asdict(run.data_set.record))
        description = {
            "format": FORMAT,
            "settings": settings.used(),
            "factory": type(result.model.factory).__name__,
            "step": run.step,
            "total_steps": run.total_steps,
            "kernels": result.kernels,
            "accuracy": accuracy,
        }
        write_json(workdir.compression_path, description)
    report(f"{kernel_table(result.kernels)}\n")
    report(f"Accuracy on the validation split:\n\n{accuracy_table(before, accuracy['after'])}\n")
    report(f"compressed run: {output}")


def _accuracy(run: TrainedRun, model: TreeEnsemble) -> dict[str, float]:
    """Accuracy on the validation split by ensemble size."""
    sizes = model.tree.sizes
    metric = EnsembleAccuracy(sizes, model.average)
    measured = measure(inference(model), run.batches("validation"), [metric])
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
