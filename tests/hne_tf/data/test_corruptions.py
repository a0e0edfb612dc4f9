import io

import numpy as np
import pytest
from PIL import Image

from hne_tf.data.corruptions import CORRUPTIONS, corrupt
from hne_tf.errors import InputError

COLOUR = np.random.default_rng(0).integers(0, 256, (3, 16, 12, 3)).astype(np.uint8)
GREY = COLOUR[..., :1]

every_kind = pytest.mark.parametrize("images", [COLOUR, GREY], ids=["colour", "grey"])


@every_kind
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_keep_their_form_and_worsen_with_severity(name, images):
    distances = []
    for severity in (1, 3, 5):
        corrupted = corrupt(images, name, severity)
        assert (corrupted.shape, corrupted.dtype) == (images.shape, np.uint8)
        distances.append(np.abs(corrupted.astype(float) - images).mean())
    assert 1 < distances[0] < distances[1] < distances[2]


@every_kind
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_in_any_batch_and_whatever_others_draw(name, images):
    together = corrupt(images, name, 3)
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    alone = corrupt(images[1:2], name, 3, first_index=1)
    np.testing.assert_array_equal(alone[0], together[1])
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_noise_differs_between_images_and_severities():
    same = np.full((2, 8, 8, 3), 128, np.uint8)
    first, second = corrupt(same, "gaussian_noise", 1)
    assert (first != second).any()
    assert (corrupt(same, "speckle_noise", 1) != corrupt(same, "speckle_noise", 2)).any()


def test_gaussian_noise_has_the_published_deviation():
    image = np.full((1, 200, 200, 1), 128, np.uint8)
    noise = corrupt(image, "gaussian_noise", 2).astype(float) - 128
    assert noise.std() == pytest.approx(0.12 * 255, rel=0.02)


def test_jpeg_compression_is_that_of_pillow():
    file = io.BytesIO()
    Image.fromarray(COLOUR[0]).save(file, "JPEG", quality=15)
    expected = np.asarray(Image.open(file))
    np.testing.assert_array_equal(corrupt(COLOUR[:1], "jpeg_compression", 3)[0], expected)


@pytest.mark.parametrize(
    ("images", "name", "severity", "words"),
    [
        (COLOUR, "fog", 1, "one of gaussian_noise, .* got 'fog'"),
        (COLOUR, "contrast", 6, "from 1 to 5, got 6"),
        (COLOUR[..., :2], "contrast", 1, "1 or 3 channels, got .16, 12, 2."),
        (COLOUR[:, :3], "contrast", 1, "4 pixels a side or more .* got .3, 12, 3."),
    ],
)
def test_what_cannot_be_corrupted_is_refused(images, name, severity, words):
    with pytest.raises(InputError, match=words):
        corrupt(images, name, severity)
