import io

import numpy as np
import pytest
from PIL import Image

from hne_tf import data
from hne_tf.training.config import default


@pytest.fixture
def load():
    """The data set of the default settings, the digits, or with others."""

    def loaded(**settings):
        config = default().data
        config.update(settings)
        return data.load(config)

    return loaded


@pytest.fixture
def batches_of():
    """Training batches of a data set as arrays."""

    def batches(dataset, start_step, total_steps, *, batch_size=16, seed=3):
        return list(
            dataset.train_batches(
                batch_size=batch_size, start_step=start_step, total_steps=total_steps, seed=seed
            ).as_numpy_iterator()
        )

    return batches


@pytest.fixture
def smooth_picture():
    """Makes a picture without hard edges, which compresses with little loss."""

    def make(seed, width=40, height=30):
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture
def encode():
    """The bytes of a picture in a format of Pillow's."""

    def write(picture, kind="JPEG", **options):
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        return stream.getvalue()

    return write


@pytest.fixture
def jpeg_folder(tmp_path, smooth_picture):
    """An image folder of JPEG files, ten for training in each of two classes and three to test."""
    for split, count in (("train", 10), ("test", 3)):
        for label, name in enumerate(("ant", "bee")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                path = tmp_path / split / name / f"{i}.jpg"
                smooth_picture(100 * label + i).save(path, quality=95)
    return tmp_path
