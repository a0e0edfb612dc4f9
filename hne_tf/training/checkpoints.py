"""Checkpoints that a run can always come back to."""

import pathlib
import re
import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Union

from hne_tf.errors import InputError
from hne_tf.training.backends.array_checkpoint import ArrayCheckpoint

if TYPE_CHECKING:
    import tensorflow as tf

# What writes and reads a run's state: TensorFlow's files, or one of arrays.
AnyCheckpoint = Union["tf.train.Checkpoint", ArrayCheckpoint]

# What a damaged checkpoint raises on reading, by what is damaged, beside TensorFlow's own.
_DAMAGE = (IndexError, ValueError, AssertionError)
# What the last file of a complete checkpoint ends with, and the backends that write it.
_COMPLETE = {".index": "tensorflow", ArrayCheckpoint.suffix: "jax"}
# What TensorFlow and Keras say of a variable of another model.
_OTHER_SHAPE = re.compile(
    r"incompatible tensor with shape|shapes? .* (incompatible|mismatch)", re.I
)

_WRITING = ".writing"


def save(checkpoint: AnyCheckpoint, folder: pathlib.Path, step: int, keep: int) -> None:
    """Writes `ckpt-<step>`, complete or not at all, and keeps the newest `keep` up to it.

    TensorFlow's `checkpoint` file, which names the newest, is not needed:
    `restore_newest` looks at what is there. A checkpoint of a later step is one that
    was damaged when the run was resumed; it does not count.

    Raises:
      InputError: if it cannot be written; what was there before is left.
    """
    name = f"ckpt-{step}"
    writing = folder / _WRITING
    shutil.rmtree(writing, ignore_errors=True)
    try:
        checkpoint.write(str(writing / name))
        # The index comes last: a checkpoint without it is not there.
        for file in sorted(writing.glob(f"{name}.*"), key=lambda file: file.suffix == ".index"):
            file.rename(folder / file.name)
    except (*_tensorflow_errors(), OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder / name} must be writable: {reason}") from None
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    for old in [each for each in steps(folder) if each <= step][keep:]:
        for file in folder.glob(f"ckpt-{old}.*"):
            file.unlink()


def steps(folder: pathlib.Path) -> list[int]:
    """Steps that have checkpoint files in `folder`, sound or not, newest first."""
    found = (re.match(r"ckpt-([0-9]+)\.", file.name) for file in folder.glob("ckpt-*"))
    return sorted({int(match[1]) for match in found if match}, reverse=True)


def restore_newest(
    checkpoint: AnyCheckpoint,
    folder: pathlib.Path,
    report: Callable[[str], None],
    partial: bool = False,
) -> int | None:
    """Restores the newest sound checkpoint; a damaged one is reported and passed over.

    Args:
      checkpoint: what to restore into.
      folder: where `save` wrote.
      report: gets a line per damaged checkpoint.
      partial: whether the checkpoint may hold more than is asked for.

    Returns:
      The step restored, or None if no checkpoint was ever complete.

    Raises:
      InputError: if there are checkpoints but none is sound, or one is of a model with
        other shapes, or of another backend.
    """
    own = getattr(checkpoint, "suffix", ".index")
    for suffix, backend in _COMPLETE.items():
        if suffix != own and any(folder.glob(f"ckpt-*{suffix}")):
            raise InputError(
                f"a run goes on under the backend that it began with, KERAS_BACKEND={backend} for "
                f"{folder.parent}, got KERAS_BACKEND={_COMPLETE[own]}"
            )
    for step in steps(folder):
        path = str(folder / f"ckpt-{step}")
        try:
            status = checkpoint.read(path)
            status.assert_existing_objects_matched()
            if not partial:
                status.assert_consumed()
        except (*_tensorflow_errors(), *_DAMAGE) as error:
            reason = " ".join(str(error).split())[:200]
            if _OTHER_SHAPE.search(reason):
                raise InputError(
                    f"checkpoint {path} must be of a model with the same shapes; the data may have "
                    f"other classes now: {reason}"
                ) from None
            report(f"checkpoint {path} is damaged and passed over: {reason}")
            continue
        status.expect_partial()
        return step
    # What a kill leaves of the first checkpoint has no index yet.
    if any(folder.glob(f"ckpt-*{own}")):
        raise InputError(
            f"{folder} must hold a sound checkpoint, but none of its files can be restored; "
            "use --restart to move the run aside and start afresh"
        )
    return None


def has_arrays(folder: pathlib.Path) -> bool:
    """Whether checkpoints are files of arrays, which another backend than TensorFlow wrote."""
    return any(folder.glob(f"ckpt-*{ArrayCheckpoint.suffix}"))


def _tensorflow_errors() -> tuple[type[Exception], ...]:
    """What TensorFlow's checkpoints raise, if it is loaded."""
    tensorflow = sys.modules.get("tensorflow")
    return (tensorflow.errors.OpError,) if tensorflow else ()
