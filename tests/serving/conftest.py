"""A small published model and a server that answers for it."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import json

import numpy as np
import pytest
import tensorflow as tf

from serving.servable import Servable, latest_version_path
from serving.service import start

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZES = (1, 2, 4)


class _Ensemble(tf.Module):
    """Four convolutional networks of different weights."""

    def __init__(self):
        generator = tf.random.Generator.from_seed(7)
        self.kernels = [tf.Variable(generator.normal([3, 3, 1, 6])) for _ in range(max(SIZES))]
        self.heads = [tf.Variable(generator.normal([6, len(CLASSES)])) for _ in range(max(SIZES))]

    def signature(self, size):
        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1], tf.uint8, name="images")])
        def predict(images):
            pixels = tf.cast(images, tf.float32) / 255.0
            leaves = [
                tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(pixels, kernel, 1, "SAME")), [1, 2]) @ head
                for kernel, head in zip(self.kernels[:size], self.heads, strict=False)
            ]
            logits = tf.add_n(leaves) / size
            return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

        return predict

    def step(self):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None, 6], tf.float32, name="cache"),
                tf.TensorSpec([None, len(CLASSES)], tf.float32, name="running_sum"),
            ]
        )
        def predict(cache, running_sum):
            total = running_sum + cache @ self.heads[1]
            return {"running_sum": total, "probabilities": tf.nn.softmax(total / 2.0)}

        return predict


@pytest.fixture(scope="session")
def base_path(tmp_path_factory):
    """`digits` with version 7 complete, beside folders that must not be served."""
    base = tmp_path_factory.mktemp("models") / "digits"
    model = _Ensemble()
    model.functions = {f"ensemble_{size}": model.signature(size) for size in SIZES}
    model.functions["step_2"] = model.step()
    model.functions["serving_default"] = model.functions["ensemble_4"]
    tf.saved_model.save(model, str(base / "7"), signatures=model.functions)
    for other in ("3", ".tmp-9", "10.partial"):
        (base / other).mkdir()
    return base


@pytest.fixture(scope="session")
def saved_model(base_path):
    """The SavedModel itself, called without any server."""
    return tf.saved_model.load(str(base_path / "7"))


@pytest.fixture(scope="session")
def server(base_path):
    running = start(Servable("digits", latest_version_path(base_path)))
    yield running
    running.stop(grace_s=0)


@pytest.fixture(scope="session")
def images():
    """uint8 `[5, 8, 8, 1]`."""
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)


@pytest.fixture
def manifest_content():
    return {
        "model": "digits",
        "sizes": list(SIZES),
        "classes": list(CLASSES),
        "input": {"name": "images", "dtype": "uint8", "shape": [None, 8, 8, 1]},
        "latency": {
            "hardware": {"cpu": "a test's"},
            "measurements": [
                {
                    "signature": f"ensemble_{size}",
                    "batch_size": batch_size,
                    "p50_ms": 0.5 * size * batch_size,
                    "p95_ms": 1.0 * size * batch_size,
                    "p99_ms": 2.0 * size * batch_size,
                    "runs": 50,
                }
                for size in SIZES
                for batch_size in (1, 16)
            ],
        },
    }


@pytest.fixture
def manifest_path(tmp_path, manifest_content):
    path = tmp_path / "hne_manifest.json"
    path.write_text(json.dumps(manifest_content))
    return path
