import numpy as np
import pytest

from hne_tf.data.windows import DRAWS, random_window


def windows_of(width, height, least_share, count=300):
    draws = np.random.default_rng(0).random((count, *DRAWS), np.float32)
    return np.array([random_window(width, height, least_share, each) for each in draws])


def test_windows_keep_area_and_aspect_ratio():
    lefts, tops, rights, bottoms = windows_of(400, 300, 0.25).T
    assert ((tops >= 0) & (lefts >= 0)).all()
    assert ((bottoms <= 300) & (rights <= 400)).all()
    areas = (bottoms - tops) * (rights - lefts) / (300 * 400)
    aspects = (rights - lefts) / (bottoms - tops)
    assert 0.24 < areas.min() < 0.35
    assert areas.max() > 0.8
    assert 0.74 < aspects.min() < 0.8
    assert 1.25 < aspects.max() < 1.34


def test_windows_lie_anywhere():
    lefts, tops, rights, bottoms = windows_of(400, 300, 0.25).T
    assert len(set(zip(lefts, tops, rights, bottoms, strict=True))) > 290
    for free, side in ((400 - rights, lefts), (300 - bottoms, tops)):
        assert (free == 0).any()
        assert (side == 0).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (10, 100), (3, 2)])
@pytest.mark.parametrize("least_share", [0.01, 0.9, 1.0])
def test_windows_of_any_picture_lie_in_it(size, least_share):
    for left, top, right, bottom in windows_of(*size, least_share, 50):
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


def test_where_no_row_fits_it_is_the_largest_central_window():
    draws = np.zeros(DRAWS)
    # All of a picture of 1000 x 10 in a ratio of 3/4 is taller than the picture.
    assert random_window(1000, 10, 1.0, draws) == (493, 0, 506, 10)
    assert random_window(10, 1000, 1.0, draws) == (0, 493, 10, 506)
