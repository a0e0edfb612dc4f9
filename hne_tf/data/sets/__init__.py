"""The data sets: a file each, and the registry that a config names them by.

`DATA_SETS` is the registry: a new file beside the others needs a line there. Sets are
loaded when they are used, so that others need not wait for their packages.
"""

from collections.abc import Callable, Mapping

from ml_collections import config_dict

from hne_tf import import_path
from hne_tf.data.source import Source
from hne_tf.errors import InputError

# Import path of what loads each set, by the name that a config gives it.
DATA_SETS: Mapping[str, str] = {
    "digits": "hne_tf.data.sets.digits:load",
    "cifar10": "hne_tf.data.sets.tfds_sets:load_cifar",
    "cifar100": "hne_tf.data.sets.tfds_sets:load_cifar",
    "imagenet2012": "hne_tf.data.sets.tfds_sets:load_imagenet",
    "image_folder": "hne_tf.data.sets.image_folder:load",
    "npz": "hne_tf.data.sets.array_file:load",
    # The set's own name follows a colon.
    "tfds": "hne_tf.data.sets.tfds_sets:load_any",
}


def find(name: str) -> Callable[[config_dict.ConfigDict], Source]:
    """What loads the set of a name in a config, or of an import path, `my_module:load`.

    Raises:
      InputError: if there is no such set.
    """
    key = "tfds" if name.startswith("tfds:") else name
    if key not in DATA_SETS and ":" not in name:
        raise InputError(
            f"data.name must be one of {', '.join(DATA_SETS)} or an import path such as "
            f"my_module:load, got {name!r}"
        )
    return import_path.load_function("data.name", DATA_SETS.get(key, name))
