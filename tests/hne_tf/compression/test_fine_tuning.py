import dataclasses
import math

import ml_collections
import numpy as np
import pytest

from hne_tf.compression import flat, treatments
from hne_tf.compression.fine_tuning import Training, fine_tune
from hne_tf.errors import InputError
from hne_tf.export.post_training import post_training
from hne_tf.models import weights
from hne_tf.models.folding import deployed
from hne_tf.training import build, trained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(trained_workdir):
    return trained.restore(trained_workdir)


def flattened(run):
    model = flat.flat_model(deployed(run.model))
    flat.load(model, weights.read(deployed(run.model)))
    return model


def tune(model, run, steps):
    return fine_tune(model, run.model, Training.of_run(run), steps, learning_rate=1e-3)


def objective_of(run, model):
    """Mean objective over the training split, at its final strength."""
    images, labels = next(iter(run.data_set.evaluation_batches("train", 320)))
    loss = build.objective(run.config, 1.0)
    return float(np.mean(loss.call(labels, model(images, training=False))))


def changed(run, **fields):
    config = ml_collections.ConfigDict(run.config.to_dict())
    config.update_from_flattened_dict({n.replace("__", "."): v for n, v in fields.items()})
    return dataclasses.replace(run, config=ml_collections.FrozenConfigDict(config))


def test_epochs_are_the_runs(run):
    assert [Training.of_run(run).steps(epochs) for epochs in (0, 0.01, 1, 2.5)] == [0, 1, 10, 25]


def test_training_goes_on_where_the_run_ended(run):
    model = flattened(run)
    before = objective_of(run, model)
    last = tune(model, run, steps=20)
    assert math.isfinite(last)
    assert objective_of(run, model) < before


def test_quantisation_aware_training_improves_on_post_training(run):
    model = deployed(run.model)
    batches = run.data_set.evaluation_batches("train", 320)
    quantized = post_training(model, (images for images, _ in batches))
    before = objective_of(run, quantized)
    treatment = treatments.train_quantized(flattened(run), quantized)
    tune(treatment.model, run, steps=20)
    weights.load(quantized, treatment.strip())
    assert objective_of(run, quantized) < before


def test_the_objective_has_ended_its_ramp(run):
    constant, ramped = (
        tune(flattened(run), changed(run, objective__hierarchical__ramp_epochs=epochs), steps=1)
        for epochs in (0.0, 100.0)
    )
    assert ramped == pytest.approx(constant, rel=1e-4)


def test_a_loss_that_is_no_number_is_reported(run):
    broken = flattened(run)
    variable = flat.variables(broken)["block2/node0/head/bias"]
    variable.assign(np.full(variable.shape, np.nan))
    with pytest.raises(InputError, match="finite, got nan"):
        tune(broken, run, steps=4)
