import base64
import io

import numpy as np
import pytest
from PIL import Image

from hne_tf.report import gallery
from hne_tf.training import trained

SIZES = (1, 2, 4)


def test_images_on_which_sizes_differ_are_half_of_those_shown():
    # Sizes differ on every fifth image.
    correct = np.array([[index % 5 != 4, True] for index in range(100)])
    assert gallery.chosen(correct, 6).tolist() == [0, 1, 2, 4, 9, 14]


@pytest.mark.parametrize(
    ("correct", "count", "expected"),
    [
        ([[True, True]] * 9, 4, [0, 1, 2, 3]),
        ([[False, False]] * 9, 4, [0, 1, 2, 3]),
        ([[False, True]] * 9, 4, [0, 1, 2, 3]),
        ([[False, True], [True, True]], 10, [0, 1]),
        ([[True, True], [False, True]], 1, [0]),
    ],
    ids=["all right", "all wrong", "all differ", "few", "one"],
)
def test_all_images_are_shown_once_where_there_is_little_to_choose(correct, count, expected):
    assert gallery.chosen(np.array(correct), count).tolist() == expected


def decoded(uri):
    head, _, content = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_the_image(channels):
    image = np.random.default_rng(0).integers(0, 256, [8, 6, channels], np.uint8)
    np.testing.assert_array_equal(decoded(gallery.data_uri(image)), image.squeeze())


def test_a_large_picture_is_made_smaller():
    assert decoded(gallery.data_uri(np.zeros([400, 200, 3], np.uint8))).shape == (96, 48, 3)


def test_answers_are_those_of_the_trained_sizes(trained_workdir):
    run = trained.restore(trained_workdir)
    shown = gallery.collect(run, SIZES, 400)
    # All 360 test images, so that what is right adds up to the accuracy.
    assert [image["index"] for image in shown["images"]] == list(range(360))
    assert shown["candidates"] == 360
    assert shown["classes"] == list("0123456789")
    labels = [image["label"] for image in shown["images"]]
    assert labels == run.data_set.splits["test"].labels.numpy().tolist()
    measured = run.evaluate("test")["sizes"]
    for column, row in enumerate(measured):
        right = [image["answers"][column] == image["label"] for image in shown["images"]]
        assert np.mean(right) == pytest.approx(row["accuracy"])
    rights = [
        [answer == image["label"] for answer in image["answers"]] for image in shown["images"]
    ]
    assert shown["telling"] == sum(any(each) and not all(each) for each in rights)
    batch, _ = next(iter(run.data_set.evaluation_batches("test", 5)))
    logits = run.model(batch, training=False).numpy().mean(axis=1)
    confidence = np.exp(logits).max(axis=1) / np.exp(logits).sum(axis=1)
    full = [image["confidences"][-1] for image in shown["images"][:5]]
    np.testing.assert_allclose(full, confidence, atol=1e-3)
    np.testing.assert_array_equal(
        decoded(shown["images"][4]["picture"]), batch[4].numpy().squeeze()
    )
