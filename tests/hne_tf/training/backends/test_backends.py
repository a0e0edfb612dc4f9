import keras
import pytest

from hne_tf.errors import InputError
from hne_tf.models.layers.grouped import GroupedLayers
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.training import backends, build, loop
from hne_tf.training.backends import on_tensorflow
from hne_tf.training.machines.cluster import Cluster
from hne_tf.training.workdir import Workdir


def test_the_backend_of_keras_trains():
    assert backends.current() is on_tensorflow


def test_another_backend_is_refused_before_anything_is_written(tiny_config, monkeypatch, tmp_path):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(InputError, match="must be tensorflow or jax to train, got torch"):
        loop.train(tiny_config(), Workdir(tmp_path / "run"))
    assert not list(tmp_path.iterdir())


def test_layers_suit_the_backend(tiny_config, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    # Norms see the batch of all devices without being told.
    config = tiny_config(distribution__synchronized_norm="on")
    layers = build.training_layers(config, replicas=2)
    assert type(layers) is TrainingLayers
    assert layers.shifted
    assert not layers.synchronized
    assert type(build.training_layers(config, grouped=True)) is GroupedLayers
    with pytest.raises(InputError, match="auto or off under KERAS_BACKEND=jax, got on"):
        build.training_layers(tiny_config(training__fused_norm="on"))


@pytest.mark.parametrize(
    ("settings", "workers", "message"),
    [
        ({}, 2, "several workers .* KERAS_BACKEND=tensorflow only, got 2 under jax"),
        ({"distribution__operation_threads": 2}, 1, "operation_threads must be 0 .*, got 2"),
        ({"distribution__logical_devices": 0}, 1, "logical_devices must be 1 or more, got 0"),
        ({"distribution__logical_devices": 99}, 1, "before JAX starts, .*, got 99"),
    ],
)
def test_what_jax_does_not_have_is_refused(tiny_config, settings, workers, message):
    pytest.importorskip("jax")
    from hne_tf.training.backends import on_jax

    with pytest.raises(InputError, match=message):
        on_jax.devices_of(tiny_config(**settings), Cluster(workers))


def test_a_gpu_that_is_not_deterministic_is_refused(monkeypatch):
    pytest.importorskip("jax")
    from hne_tf.training.backends import on_jax

    monkeypatch.setattr(on_jax, "accelerated", lambda: True)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    with pytest.raises(InputError, match="needs XLA_FLAGS="), on_jax.seeded(0, True):
        pass
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    with on_jax.seeded(0, True):
        pass
