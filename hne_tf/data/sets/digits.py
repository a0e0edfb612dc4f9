"""The 1,797 real 8x8 digits inside scikit-learn; needs no network."""

import functools

import numpy as np
from ml_collections import config_dict

from hne_tf.data.source import ArraySource
from hne_tf.errors import extra

_STATISTICS = (77.76,), (95.80,)


def load(config: config_dict.ConfigDict) -> ArraySource:
    """The digits: 1,257 to train on, 180 for validation and 360 for the test."""
    del config
    with extra("data"):
        from sklearn import datasets, model_selection

    digits = datasets.load_digits()
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = digits.target
    part = functools.partial(model_selection.train_test_split, random_state=0)
    rest, test = part(np.arange(len(labels)), test_size=360, stratify=labels)
    train, validation = part(rest, test_size=180, stratify=labels[rest])
    splits = {"train": train, "validation": validation, "test": test}
    arrays = {name: (images[indices], labels[indices]) for name, indices in splits.items()}
    return ArraySource(tuple(map(str, digits.target_names)), _STATISTICS, "digits", arrays)
