"""Fixed parts of a split, chosen by the labels of its examples."""

import numpy as np

from hne_tf.errors import InputError, extra


def stratified(labels: np.ndarray, examples: int) -> np.ndarray | slice:
    """What selects `examples` of the examples, each class in proportion; 0 is all.

    Raises:
      InputError: if there are not as many, or not one for every class.
    """
    if examples in (0, len(labels)):
        return slice(None)
    with extra("data"):
        from sklearn import model_selection

    try:
        kept, _ = model_selection.train_test_split(
            np.arange(len(labels)), train_size=examples, stratify=labels, random_state=0
        )
    except ValueError as error:
        classes = len(np.unique(labels))
        raise InputError(
            f"data.train_examples must be 0 or {len(labels)} (all), or between {classes} and "
            f"{len(labels) - classes}, with two examples of each class to choose from, "
            f"got {examples}"
        ) from error
    return np.sort(kept)


def every_tenth(labels: np.ndarray) -> np.ndarray:
    """Marks every tenth example of each class, bool `[n]`; `labels` is sorted.

    Raises:
      InputError: if no class has two examples.
    """
    within_class = np.arange(len(labels)) - np.searchsorted(labels, labels)
    # From the second on: a class with two examples keeps one to train on.
    held_out = within_class % 10 == 1
    if not held_out.any():
        raise InputError(
            "an image_folder without validation/ needs at least two training images in a class, "
            f"got {len(labels)} images in {len(np.unique(labels))} classes"
        )
    return held_out
