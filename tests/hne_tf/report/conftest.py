import json

import pytest

from hne_tf.training import build
from hne_tf.training.workdir import Workdir


@pytest.fixture(scope="session")
def made_run(tiny_config):
    """Makes an evaluated run, without having trained it: settings and figures alone.

    Size n answers right in `(50 + 10 n)` of 100 images and costs `1000 n`.
    """

    def make(path, edit=lambda evaluation: None, **settings):
        workdir = Workdir(path)
        config = tiny_config(**settings)
        workdir.claim(config, restart=False)
        tree = build.tree(config)
        rows = [
            {
                "size": size,
                "accuracy": 0.5 + 0.1 * size,
                "nll": 1.0 / size,
                "ece": 0.05,
                "brier": 0.4,
                "disagreement": 0.2,
                "variance": 0.1,
                "mean_member_accuracy": 0.55,
                "gain": 0.1 * size - 0.05,
                "multiply_adds": 1000 * size,
                "parameters": 500 * size,
                "reliability": {
                    "count": [0] * 14 + [100],
                    "confidence": [None] * 14 + [0.95],
                    "accuracy": [None] * 14 + [0.5 + 0.1 * size],
                },
            }
            for size in tree.sizes
        ]
        stopping = {"split": "validation", "examples": 50, "sizes": [1], "curve": []}
        evaluation = {
            "split": "test",
            "examples": 100,
            "step": 30,
            "total_steps": 30,
            "sizes": rows,
            "sizes_by_average": {},
            "leaf_accuracy": [0.55] * tree.leaves,
            "mean_leaf_accuracy": 0.55,
            "early_stopping": stopping,
            "corruptions": None,
        }
        edit(evaluation)
        workdir.evaluation_path("test").write_text(json.dumps(evaluation))
        return workdir

    return make
