import numpy as np
import pytest
import sklearn.metrics

from hne_tf.errors import InputError
from hne_tf.evaluation import out_of_distribution
from hne_tf.training import trained


@pytest.fixture(scope="module")
def run(trained_workdir):
    return trained.restore(trained_workdir)


def noise(shape, count=200):
    return np.random.default_rng(0).integers(0, 17, (count, *shape), np.uint8)


def test_the_area_equals_sklearn_s(run):
    images, _ = next(iter(run.data_set.evaluation_batches("test", 360)))
    others = noise(run.model.images.shape)
    found = out_of_distribution.evaluate(
        run.model, run.batches("test"), (others, np.zeros(len(others), int))
    )
    assert found["examples"] == 200
    assert list(found["auroc"]) == ["1", "2", "4"]
    for size, area in found["auroc"].items():
        sure = [
            run.model.probabilities(each, int(size)).max(axis=1)
            for each in (images.numpy(), others)
        ]
        own = np.repeat([1, 0], [360, 200])
        expected = sklearn.metrics.roc_auc_score(own, np.concatenate(sure))
        assert area == pytest.approx(expected, abs=1e-3)


def test_images_of_another_shape_are_refused(run):
    others = noise((9, 9, 1))
    with pytest.raises(InputError, match=r"\[batch, 8, 8, 1\], got uint8 of \[200, 9, 9, 1\]"):
        out_of_distribution.evaluate(
            run.model, run.batches("test"), (others, np.zeros(len(others), int))
        )
