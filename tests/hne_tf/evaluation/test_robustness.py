import numpy as np
import pytest

from hne_tf.data.corruptions import CORRUPTIONS, corrupt
from hne_tf.errors import InputError
from hne_tf.evaluation import robustness
from hne_tf.training import trained


@pytest.fixture(scope="module")
def run(trained_workdir):
    return trained.restore(trained_workdir)


def test_accuracies_are_those_of_numpy_on_corrupted_images(run):
    measured = robustness.evaluate(run.model, run.batches("test"), 300, severities=(2, 5))
    ((images, labels),) = run.data_set.evaluation_batches("test", 360).as_numpy_iterator()
    assert (measured["examples"], measured["severities"]) == (300, [2, 5])
    assert list(measured["accuracy"]) == list(CORRUPTIONS)
    rows = []
    for name, by_severity in measured["accuracy"].items():
        assert list(by_severity) == ["2", "5"]
        for severity, by_size in by_severity.items():
            corrupted = corrupt(images[:300], name, int(severity))
            leaf_logits = run.model(corrupted, training=False).numpy()
            rows.append(
                [
                    (leaf_logits[:, :size].mean(axis=1).argmax(axis=1) == labels[:300]).mean()
                    for size in run.model.tree.sizes
                ]
            )
            assert list(by_size.values()) == pytest.approx(rows[-1])
    assert list(measured["mean"].values()) == pytest.approx(np.mean(rows, axis=0))


def test_more_examples_than_there_are_mean_all(run):
    assert (
        robustness.evaluate(run.model, run.batches("test"), 10_000, severities=(1,))["examples"]
        == 360
    )


def test_no_examples_are_refused(run):
    with pytest.raises(InputError, match="1 or more, got 0"):
        robustness.evaluate(run.model, run.batches("test"), 0)
