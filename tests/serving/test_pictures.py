"""Picture files to model inputs."""

import numpy as np
import pytest
from PIL import Image

from hne_tf.client.pictures import read_picture, to_image
from hne_tf.errors import InputError

_PIXELS = np.random.default_rng(1).integers(0, 256, (8, 6, 3), dtype=np.uint8)


def _saved(tmp_path, pixels, name="picture.png", **options):
    path = tmp_path / name
    Image.fromarray(pixels).save(path, **options)
    return path


def test_a_fitting_colour_picture_keeps_its_pixels(tmp_path):
    picture = read_picture(_saved(tmp_path, _PIXELS))
    np.testing.assert_array_equal(to_image(picture, "p", (8, 6, 3)), _PIXELS)


def test_a_fitting_grey_picture_keeps_its_pixels(tmp_path):
    picture = read_picture(_saved(tmp_path, _PIXELS[..., 0]))
    np.testing.assert_array_equal(to_image(picture, "p", (8, 6, 1)), _PIXELS[..., :1])


@pytest.mark.parametrize("shape", [(8, 8, 3), (6, 8, 3), (8, 6, 1)])
def test_another_size_or_mode_is_refused_and_names_the_flag(tmp_path, shape):
    picture = read_picture(_saved(tmp_path, _PIXELS))
    with pytest.raises(InputError, match=r"got 6 x 8 in mode RGB: 'p' .*--resize"):
        to_image(picture, "p", shape)


@pytest.mark.parametrize("shape", [(8, 8, 3), (3, 4, 3), (8, 6, 1), (16, 12, 1)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
def test_resize_fits_any_picture(tmp_path, mode, shape):
    path = tmp_path / ("picture.tiff" if mode == "CMYK" else "picture.png")
    Image.fromarray(_PIXELS).convert(mode).save(path)
    image = to_image(read_picture(path), "p", shape, resize=True)
    assert image.shape == shape
    assert image.dtype == np.uint8


def test_resize_keeps_flat_colour(tmp_path):
    flat = np.full((32, 32, 3), (200, 100, 50), np.uint8)
    image = to_image(read_picture(_saved(tmp_path, flat)), "p", (8, 8, 3), resize=True)
    np.testing.assert_array_equal(image, flat[:8, :8])


def test_a_picture_taken_sideways_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = _saved(tmp_path, _PIXELS, exif=exif)
    image = to_image(read_picture(path), "p", (6, 8, 3))
    np.testing.assert_array_equal(image, np.rot90(_PIXELS, -1))


def test_sixteen_bits_are_refused(tmp_path):
    path = _saved(tmp_path, np.zeros((8, 8), np.uint16))
    with pytest.raises(InputError, match="8 bits per channel"):
        read_picture(path)


def test_text_is_refused(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("no picture")
    with pytest.raises(InputError, match="cannot be read as a picture"):
        read_picture(path)


def test_a_cut_off_picture_is_refused(tmp_path):
    path = _saved(tmp_path, _PIXELS)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputError, match="cannot be read as a picture"):
        read_picture(path)


def test_a_picture_of_excessive_size_is_refused(tmp_path, monkeypatch):
    path = _saved(tmp_path, _PIXELS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(InputError, match="cannot be read as a picture"):
        read_picture(path)


@pytest.mark.parametrize("name", ["absent.png", "."])
def test_what_is_no_file_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="must be a file"):
        read_picture(tmp_path / name)


def test_a_model_of_two_channels_takes_no_pictures():
    with pytest.raises(InputError, match="1 or 3 channels"):
        to_image(Image.new("L", (8, 8)), "p", (8, 8, 2), resize=True)
