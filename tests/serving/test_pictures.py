"""Picture files to model inputs."""

import gc
import weakref

import numpy as np
import pytest
from PIL import Image

from hne_tf.data import pictures
from hne_tf.data.pictures import read_all
from hne_tf.data.pixels import Pixels
from hne_tf.errors import InputError

_PIXELS = np.random.default_rng(1).integers(0, 256, (8, 6, 3), dtype=np.uint8)


def _saved(tmp_path, pixels, name="picture.png", **options):
    path = tmp_path / name
    Image.fromarray(pixels).save(path, **options)
    return str(path)


def _image(path, shape, fit=False):
    read = read_all([path], Pixels(*shape), fit)
    read.check()
    ((name, image),) = read.images
    assert name == path
    return image


def test_fitting_pictures_keep_their_pixels(tmp_path):
    np.testing.assert_array_equal(_image(_saved(tmp_path, _PIXELS), (8, 6, 3)), _PIXELS)
    grey = _saved(tmp_path, _PIXELS[..., 0], "grey.png")
    np.testing.assert_array_equal(_image(grey, (8, 6, 1)), _PIXELS[..., :1])


@pytest.mark.parametrize("shape", [(8, 8, 3), (6, 8, 3), (8, 6, 1)])
def test_another_size_or_mode_is_refused_and_names_the_flag(tmp_path, shape):
    path = _saved(tmp_path, _PIXELS)
    with pytest.raises(InputError, match=r"cannot be read: .* got 6 x 8 in mode RGB \(--resize"):
        _image(path, shape)


@pytest.mark.parametrize("shape", [(8, 8, 3), (3, 4, 3), (8, 6, 1), (16, 12, 1)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK", "I;16"])
def test_any_picture_can_be_fitted(tmp_path, mode, shape):
    path = tmp_path / ("picture.tiff" if mode == "CMYK" else "picture.png")
    picture = Image.fromarray(_PIXELS)
    (picture.convert("L") if mode == "I;16" else picture).convert(mode).save(path)
    image = _image(str(path), shape, fit=True)
    assert image.shape == shape
    assert image.dtype == np.uint8


def test_bad_pictures_do_not_keep_the_others_from_being_read(tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    paths = [
        str(tmp_path / "absent.png"),
        _saved(tmp_path, _PIXELS, "a.png"),
        str(tmp_path),
        str(text),
        _saved(tmp_path, _PIXELS, "b\n.png"),
    ]
    read = read_all(paths, Pixels(8, 6), fit=False)
    assert [name for name, _ in read.images] == [paths[1], repr(paths[4])]
    assert [failure.split("'")[1] for failure in read.failures] == [paths[0], paths[2], paths[3]]
    with pytest.raises(InputError) as error:
        read.check()
    assert str(error.value) == "; ".join(read.failures)


def test_many_bad_pictures_are_one_line():
    read = read_all([f"{number}.png" for number in range(30)], Pixels(8, 6), fit=False)
    with pytest.raises(InputError, match=r"'9.png' cannot be read: [^;]*; and 20 more$"):
        read.check()


def test_one_picture_at_a_time_is_in_memory(tmp_path, monkeypatch):
    """Decoded, a photo of 12 megapixels takes 48 MB."""
    decoded, genuine = [], pictures.decode

    def decode(data):
        gc.collect()
        assert all(reference() is None for reference in decoded)
        picture = genuine(data)
        decoded.append(weakref.ref(picture))
        return picture

    monkeypatch.setattr(pictures, "decode", decode)
    paths = [_saved(tmp_path, _PIXELS, f"{number}.png") for number in range(5)]
    assert len(read_all(paths, Pixels(4, 4), fit=True).images) == len(decoded) == 5
