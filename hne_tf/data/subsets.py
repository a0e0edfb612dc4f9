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


def a_tenth(labels: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Marks about a tenth of the examples of each class, bool `[n]`.

    An example is marked by its own draw alone, so that others change nothing; only a
    class in which that marks nothing, or everything, has the one with the least draw
    marked.

    Args:
      labels: `[n]`.
      draws: of each example, uniform in [0, 1), `[n]`.

    Raises:
      InputError: if no class has two examples.
    """
    marked = draws < 0.1
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) == 1:
            # A single example is for training.
            marked[rows] = False
        elif not 0 < marked[rows].sum() < len(rows):
            marked[rows] = False
            marked[rows[np.argmin(draws[rows])]] = True
    if not marked.any():
        raise InputError(
            "data without a validation split need at least two training images in a class, "
            f"got {len(labels)} images in {len(np.unique(labels))} classes"
        )
    return marked
