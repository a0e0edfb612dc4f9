"""A library call leaves seeds and determinism as it finds them."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.utils import rng_utils
from tensorflow.python.eager import context
from tensorflow.python.framework.config import is_op_determinism_enabled

from hne_tf.training.loop import train
from hne_tf.training.machines.devices import seeded
from hne_tf.training.workdir import Workdir


def draws():
    """What each generator gives next."""
    return (
        random.random(),
        np.random.random(),
        float(tf.random.uniform(())),
        float(keras.random.uniform(())),
    )


@pytest.fixture
def seeds():
    def again():
        keras.utils.set_random_seed(7)
        draws()

    again()
    return again


def test_generators_go_on_as_if_nothing_had_been_seeded(seeds):
    expected = random.random(), np.random.random()
    seeds()
    with seeded(0, deterministic=True):
        inside = draws()
        assert is_op_determinism_enabled()
    assert not is_op_determinism_enabled()
    assert (random.random(), np.random.random()) == expected
    assert context.global_seed() == rng_utils.get_random_seed() == 7
    with seeded(0, deterministic=True):
        assert draws() == inside


def test_determinism_of_the_caller_stays():
    from tensorflow.python.framework.config import disable_op_determinism

    with seeded(0, deterministic=True):
        with seeded(0, deterministic=True):
            pass
        assert is_op_determinism_enabled()
    disable_op_determinism()


def test_training_leaves_no_settings_behind(tiny_config, tmp_path, seeds, monkeypatch):
    expected = random.random(), np.random.random()
    seeds()
    # A TensorFlow that has started would refuse other threads, and show nothing.
    changes = []
    for name in ("set_intra_op_parallelism_threads", "set_inter_op_parallelism_threads"):
        monkeypatch.setattr(tf.config.threading, name, changes.append)
    config = tiny_config(training__deterministic=True, training__epochs=0.2)
    config.optimizer.warmup_epochs = 0.0
    train(config, Workdir(tmp_path / "run"), report=lambda line: None)
    assert not is_op_determinism_enabled()
    assert (random.random(), np.random.random()) == expected
    assert changes == []
