"""What a config says of a Keras model of the user's own. Imports no Keras."""

from collections.abc import Mapping
from typing import Any

# Weights that are not copied from the model.
FRESH = "none"

DEFAULTS: Mapping[str, Any] = {
    # keras.applications.EfficientNetV2B0, my_module.my_function or a .keras file.
    "builder": "",
    # Keyword arguments of the function, such as include_top.
    "options": {},
    # What nodes start from: the weights that the builder gives, those of a name that it
    # takes (imagenet), of a file (.weights.h5, .h5 or .keras), or none.
    "weights": "",
    # The layer that each block but the last one ends with; () for blocks of about the
    # same cost. hne-cut shows them.
    "cut_at": (),
    # The model's own: keep or replace it, or add one to a model without.
    "classifier": "replace",
    # Blocks whose nodes start from fresh weights.
    "reinitialise": (),
    # Noise in the weights that nodes start from, for each block a part of their own
    # standard deviation; () for none.
    "perturb": (),
    # Of the images that the model was trained with, per channel, in units of 0 to 255; 0
    # and 1 for a model with preprocessing layers inside. () for those of a model of
    # keras.applications, and without weights those of the data set.
    "mean": (),
    "std": (),
    # The network that was cut, with its normalisation, as JSON: a run writes it, so that
    # it needs the builder no more.
    "network": "",
}
