import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hne_tf.data import pixels as module
from hne_tf.data.pixels import Pixels, decode, read_bytes
from hne_tf.errors import InputError
from hne_tf.exported.manifest import Manifest
from hne_tf.tree import Tree

WHOLE = Pixels(30, 40)


def grid(seed=0, width=40, height=30, channels=3):
    """Noise, uint8 `[height, width, channels]`."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def pixels_of(data, pixels=WHOLE):
    return pixels.image(decode(data))


# Formats and colours. What must come out is worked out by hand from the pixels that went in.


@pytest.mark.parametrize("kind", ["PNG", "BMP", "DIB", "TIFF", "PPM", "WEBP", "JPEG2000"])
def test_formats_without_loss_keep_their_pixels(encode, kind):
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    data = encode(Image.fromarray(grid()), kind, **options)
    np.testing.assert_array_equal(pixels_of(data), grid())


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_formats_with_loss_keep_their_colours(encode, smooth_picture, kind):
    picture = smooth_picture(1)
    difference = pixels_of(encode(picture, kind, quality=95)) - np.asarray(picture, int)
    assert np.abs(difference).mean() < 4


def test_jpegs_are_decoded_accurately(encode, smooth_picture):
    """The accurate DCT, as TensorFlow has it too, though not by default."""
    import tensorflow as tf

    data = encode(smooth_picture(1), quality=95, subsampling=0)
    expected = tf.io.decode_jpeg(data, dct_method="INTEGER_ACCURATE").numpy()
    assert np.abs(pixels_of(data) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_grey_becomes_three_equal_channels_and_colour_becomes_luma(encode, smooth_picture, kind):
    grey = smooth_picture(1).convert("L")
    options = {"quality": 95} if kind == "JPEG" else {}
    got = pixels_of(encode(grey, kind, **options)).astype(int)
    assert (got == got[..., :1]).all()
    assert np.abs(got[..., 0] - np.asarray(grey, int)).mean() < 2
    colour = grid()
    got = pixels_of(encode(Image.fromarray(colour), "PNG"), Pixels(30, 40, channels=1))
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert got.shape == (30, 40, 1)
    assert np.abs(got[..., 0] - luma).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_become_light(encode, kind):
    """Also in JPEG, where Adobe's programs store what is left of the paper's white."""
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    data = encode(Image.new("CMYK", (40, 30), (200, 100, 0, 50)), kind, **options)
    expected = [(255 - ink) * (255 - 50) / 255 for ink in (200, 100, 0)]
    assert np.abs(pixels_of(data) - expected).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000"])
def test_of_16_bits_the_upper_8_are_taken(encode, kind):
    deep = np.random.default_rng(0).integers(0, 2**16, (30, 40)).astype(np.uint16)
    got = pixels_of(encode(Image.fromarray(deep), kind))
    np.testing.assert_array_equal(got, np.repeat((deep >> 8)[..., None], 3, 2))


def test_16_bits_in_a_portable_map_and_in_colour():
    deep = np.random.default_rng(0).integers(0, 2**16, (30, 40, 3)).astype(np.uint16)
    data = b"P6 40 30 65535\n" + deep.astype(">u2").tobytes()
    assert np.abs(pixels_of(data) - (deep / 257)).max() <= 1
    data = b"P5 40 30 65535\n" + deep[..., 0].astype(">u2").tobytes()
    np.testing.assert_array_equal(pixels_of(data)[..., 1], deep[..., 0] >> 8)


def test_palettes_and_single_bits(encode):
    picture = Image.fromarray(grid() // 64 * 64).quantize(64)
    expected = np.asarray(picture.convert("RGB"))
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        np.testing.assert_array_equal(pixels_of(encode(picture, kind)), expected)
    bits = Image.fromarray(grid()[..., 0] > 99)
    for kind in ("PNG", "GIF", "BMP", "TIFF", "PPM"):
        got = pixels_of(encode(bits, kind))
        np.testing.assert_array_equal(got, 255 * np.repeat(np.asarray(bits)[..., None], 3, 2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_what_is_transparent_is_white(encode, kind):
    rgba = np.concatenate([grid(), grid(1)[..., :1]], 2)
    rgba[:5, :, 3], rgba[5:10, :, 3] = 0, 255
    options = {"WEBP": {"lossless": True, "exact": True}}.get(kind, {})
    got = pixels_of(encode(Image.fromarray(rgba), kind, **options))
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(got - np.rint(expected)).max() <= 1
    np.testing.assert_array_equal(got[:5], 255)
    np.testing.assert_array_equal(got[5:10], rgba[5:10, :, :3])


def test_one_colour_may_be_transparent(encode):
    grey = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    deep = Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000)
    palette = grey.convert("P")
    colour = Image.merge("RGB", (grey, grey, grey))
    for picture, transparent in ((grey, 40), (deep, 10_000), (palette, 40), (colour, (40,) * 3)):
        data = encode(picture, "PNG", transparency=transparent)
        got = pixels_of(data, Pixels(3, 4))[..., 0]
        assert got[0, 2] == 255
        opaque = pixels_of(encode(picture, "PNG"), Pixels(3, 4))[..., 0]
        assert (got == opaque).sum() == 11
    for mode in ("LA", "PA"):
        clear = Image.new(mode, (4, 3), (9, 0)) if mode == "LA" else Image.new("PA", (4, 3))
        np.testing.assert_array_equal(pixels_of(encode(clear, "TIFF"), Pixels(3, 4)), 255)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_of_several_frames_is_taken(encode, kind):
    first, second = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    data = encode(first, kind, save_all=True, append_images=[second])
    assert np.abs(pixels_of(data) - np.array([255.0, 0, 0])).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_are_turned_upright(encode, turned, smooth_picture, kind, orientation):
    picture = smooth_picture(2)
    stored, exif = turned(picture, orientation)
    options = {"quality": 95} if kind in ("JPEG", "WEBP", "AVIF") else {}
    got = pixels_of(encode(stored, kind, exif=exif, **options))
    assert np.abs(got - np.asarray(picture, int)).mean() < 4


def test_a_grey_picture_of_16_bits_is_turned_upright_too(encode, turned):
    deep = np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50
    stored, exif = turned(Image.fromarray(deep), 6)
    got = pixels_of(encode(stored, "PNG", exif=exif))
    np.testing.assert_array_equal(got[..., 0], deep >> 8)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0junk"])
def test_a_picture_with_unreadable_exif_is_taken_as_it_is(encode, smooth_picture, exif):
    data = encode(smooth_picture(0), "JPEG", exif=exif)
    np.testing.assert_array_equal(pixels_of(data), pixels_of(encode(smooth_picture(0), "JPEG")))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_unknown_orientations_leave_a_picture_as_it_is(encode, smooth_picture, value):
    exif = Image.Exif()
    exif[0x0112] = value
    data = encode(smooth_picture(0), "PNG", exif=exif)
    np.testing.assert_array_equal(pixels_of(data), np.asarray(smooth_picture(0)))


# Size.


def test_evaluation_is_resize_256_crop_224(smooth_picture):
    """Cropping first and resizing once is resizing first, but for what lies across the edge."""
    picture = smooth_picture(1, 320, 256)
    got = Pixels(28, 28, central_crop=224 / 256).image(picture)
    resized = picture.resize((40, 32), Image.Resampling.BILINEAR)
    difference = np.abs(got - np.asarray(resized.crop((6, 2, 34, 30)), int))
    assert difference[1:-1, 1:-1].max() <= 1
    assert difference.max() <= 5


@pytest.mark.parametrize(
    ("crop", "size", "window"),
    [
        (0.0, (40, 30), (0, 0, 40, 30)),
        (1.0, (40, 30), (5, 0, 35, 30)),
        (0.5, (40, 30), (12, 7, 27, 22)),
        (0.875, (7, 100), (0, 47, 6, 53)),
        (0.01, (3, 3), (1, 1, 2, 2)),
    ],
)
def test_central_windows(crop, size, window):
    assert Pixels(8, 8, central_crop=crop).central_window(*size) == window


def triangle(pixels, size, axis):
    """The resize as docs/mobile.md states it, along one axis, in floating point."""
    length = pixels.shape[axis]
    scale = length / size
    support = max(scale, 1)
    centres = (np.arange(size) + 0.5) * scale
    distances = np.abs(np.arange(length) + 0.5 - centres[:, None]) / support
    weights = np.maximum(1 - distances, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis)


@pytest.mark.parametrize("size", [(7, 9), (30, 40), (64, 50), (224, 3), (1, 1)])
def test_resize_is_the_documented_formula(size):
    got = Pixels(*size).image(Image.fromarray(grid()))
    expected = triangle(triangle(grid().astype(float), size[1], axis=1), size[0], axis=0)
    assert np.abs(got - np.rint(expected)).max() <= 1


def test_arrays_become_what_pictures_become():
    colour, grey = grid()[None], grid()[None, ..., :1]
    small = Pixels(8, 9)
    np.testing.assert_array_equal(small.images(colour)[0], small.image(Image.fromarray(grid())))
    small = Pixels(8, 9, 1)
    expected = small.image(Image.fromarray(grid()[..., 0]))
    np.testing.assert_array_equal(small.images(grey)[0], expected)


# What is refused, in one line.


def assert_refused(call, *words):
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_damaged_pictures_are_refused(encode, smooth_picture):
    noise = bytes(grid()[..., 0].ravel()[:500])
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "AVIF", "BMP"):
        data = encode(smooth_picture(4, 200, 200), kind)
        assert_refused(lambda data=data: decode(data[: len(data) // 2]), "a picture must be")
        assert_refused(lambda data=data: decode(data[:12] + noise), "a picture must be")
    for data in (noise, b"", b"no picture"):
        assert_refused(lambda data=data: decode(data), "in the format JPEG, PNG, GIF")


def test_formats_that_are_programs_are_refused():
    assert_refused(lambda: decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "format")


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_of_unknown_range_are_refused(encode, mode):
    assert_refused(lambda: decode(encode(Image.new(mode, (4, 4)), "TIFF")), "8 or 16 bits", mode)


def test_colours_without_a_conversion_are_refused(monkeypatch):
    def convert(picture, mode):
        raise ValueError("conversion from HSV to L not supported")

    monkeypatch.setattr(Image.Image, "convert", convert)
    assert_refused(lambda: WHOLE.image(Image.new("HSV", (4, 4))), "grey or coloured", "HSV")


def test_a_picture_of_excessive_size_is_refused_before_it_is_decoded(encode, monkeypatch):
    data = encode(Image.new("L", (9, 5)), "PNG")
    monkeypatch.setattr(module, "MAX_PIXELS", 44)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert_refused(lambda: decode(data), "at most 44 pixels, got 9 x 5")


def test_a_bomb_is_refused(encode):
    header = bytearray(encode(Image.new("L", (9, 5)), "BMP"))
    header[18:26] = np.array([40_000, 40_000], "<i4").tobytes()
    assert_refused(lambda: decode(bytes(header)), "at most 89,478,485 pixels")


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "dangling.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    for name in ("pipe.jpg", "dangling.jpg", "circle.jpg", "absent.jpg", ".", "a\0b.jpg"):
        assert_refused(lambda name=name: read_bytes(tmp_path / name), "a picture must be a")
    if os.path.exists("/dev/zero"):
        assert_refused(lambda: read_bytes("/dev/zero"), "device")


def test_a_file_of_excessive_size_is_refused_unread(tmp_path):
    path = tmp_path / "large.jpg"
    path.touch()
    # Takes no room on the disk.
    os.truncate(path, module.MAX_BYTES + 1)
    assert_refused(lambda: read_bytes(path), "at most 1,073,741,824 bytes, got 1,073,741,825")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"height": 0}, "a pixel or more, got 0 x 8"),
        ({"channels": 2}, "1 or 3 channels, the model takes 2"),
        ({"central_crop": 1.5}, r"central_crop must lie in \[0, 1\], got 1.5"),
        ({"central_crop": -0.1}, r"central_crop must lie in \[0, 1\], got -0.1"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(InputError, match=words):
        Pixels(**{"height": 8, "width": 8, **settings})


# The manifest's part.


def test_a_manifest_holds_all_of_it():
    pixels = Pixels(24, 32, 1, 0.875)
    assert Pixels.from_json(pixels.to_json()) == pixels
    assert pixels.to_json() == {
        "size": [24, 32],
        "channels": 1,
        "central_crop": 0.875,
        "frame": "first",
        "orientation": "exif",
        "background": 255,
        "resize": "bilinear_antialiased",
        "max_pixels": 89_478_485,
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resize": "bicubic"}, ["must follow the rules", "'bicubic'"]),
        ({"colour_profile": "srgb"}, ["must follow the rules", "'colour_profile'"]),
        ({"size": [8]}, ["must have size"]),
        ({"size": None}, ["must have size"]),
        ({"size": ["8", 8]}, ["must have size"]),
        ({"central_crop": "all"}, ["must have size"]),
        ({"channels": [3]}, ["must have size"]),
        ({"channels": 4}, ["1 or 3 channels"]),
    ],
)
def test_rules_of_other_versions_are_refused(change, words):
    assert_refused(lambda: Pixels.from_json({**WHOLE.to_json(), **change}), *words)


def test_a_published_model_says_how_its_pictures_are_read():
    def of(pixels):
        manifest = Manifest.of_tree(Tree((1, 2)), "m", ("a", "b"), (30, 40, 3), pixels=pixels)
        return Pixels.of_manifest(manifest)

    assert of(None) is None
    assert of(WHOLE.to_json()) == WHOLE
    assert_refused(lambda: of(Pixels(30, 41).to_json()), "shape (30, 40, 3)", "shape (30, 41, 3)")
    assert_refused(lambda: of({"size": 3}), "must have size")


def test_what_is_no_description_is_refused():
    for fields in (None, [], "pixels", {}, 7):
        assert_refused(lambda fields=fields: Pixels.from_json(fields), "must have size")


def test_pixels_need_no_tensorflow():
    code = "import sys, hne_tf.data.pictures; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_decoding_leaves_nothing_open():
    stream = io.BytesIO()
    Image.fromarray(grid()).save(stream, "PNG")
    assert decode(stream.getvalue()).getpixel((39, 29)) == tuple(grid()[29, 39])
