"""From a trained workdir to a published version."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from hne_tf.errors import InputError
from hne_tf.evaluation import evaluation
from hne_tf.export import profiling, publish, signatures, verification, warmup
from hne_tf.exported.manifest import MANIFEST, build_manifest
from hne_tf.files import write_json
from hne_tf.models import folding, weights
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.factory import DeployLayers, TrainingLayers
from hne_tf.training import build
from hne_tf.training.trained import TrainedRun

_REFERENCE_IMAGES = 32


def export(
    run: TrainedRun,
    model_base_path: pathlib.Path,
    version: int | None = None,
    sizes: Sequence[int] | None = None,
    batch_sizes: Sequence[int] = (1,),
    report: Callable[[str], None] = print,
) -> pathlib.Path:
    """Publishes a run as `<model_base_path>/<version>`, after proving that it answers alike.

    Args:
      run: the trained run.
      model_base_path: folder of the model's versions; its name is the model's.
      version: number of the new version, the next free one by default.
      sizes: ensemble sizes with a signature; `tree.sizes` by default. The full
        ensemble is always among them.
      batch_sizes: batches that are warmed up and profiled; a single image is
        profiled besides.
      report: gets a line per stage.

    Returns:
      The folder of the new version.

    Raises:
      InputError: for a size or version that cannot be, or if the SavedModel
        differs from the live model; nothing is published then.
    """
    tree = run.model.tree
    for size in sizes or ():
        tree.check_size(size)
    sizes = tuple(sorted({*(sizes or tree.sizes), tree.leaves}))
    if not batch_sizes or min(batch_sizes) < 1:
        raise InputError(f"batch sizes must be 1 or more, got {tuple(batch_sizes)}")
    model_name = model_base_path.resolve().name
    version = publish.next_version(model_base_path) if version is None else version
    average = run.config.objective.average
    with publish.new_version(model_base_path, version) as folder:
        model = deployed(run)
        endpoints = signatures.signatures(model, sizes, average)
        warmup.check_count(len(endpoints), batch_sizes)
        signatures.save(endpoints, str(folder))
        count = warmup.write_requests(folder, model_name, endpoints, batch_sizes)
        report(f"saved {len(endpoints)} signatures and {count} warm-up requests")
        names = [f"ensemble_{size}" for size in sizes]
        # Clients need to know the latency of one image.
        latency = profiling.measure(folder, names, sorted({1, *batch_sizes}))
        measured = evaluation.evaluate(run, "test", sizes=sizes)
        description = build_manifest(run, model_name, model, sizes, measured, latency)
        write_json(folder / MANIFEST, description)
        images, leaf_logits = _reference(run)
        verification.verify(folder, images, leaf_logits)
        report(f"verified every signature on {len(images)} test images in a fresh process")
    return model_base_path / str(version)


def deployed(run: TrainedRun) -> TreeEnsemble:
    """The run's model in the deploy factory's form, its batch norms folded.

    A compressed run has such a model already, pruned, clustered or quantised.
    """
    if not isinstance(run.model.factory, TrainingLayers):
        return run.model
    model = build.ensemble(run.config, DeployLayers(), run.data_set.spec)
    weights.load(model, folding.fold(weights.read(run.model)))
    return model


def _reference(run: TrainedRun) -> tuple[np.ndarray, np.ndarray]:
    """Test images and the live model's leaf logits for them."""
    batches = run.data_set.evaluation_batches("test", _REFERENCE_IMAGES)
    images, _ = next(iter(batches))
    return images.numpy(), run.model(images, training=False).numpy()
