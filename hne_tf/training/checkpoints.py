"""Checkpoints that a run can always come back to."""

import pathlib
import re
import shutil
from collections.abc import Callable

import tensorflow as tf

from hne_tf.errors import InputError

# What a damaged checkpoint raises on reading, by what is damaged.
_DAMAGE = (tf.errors.OpError, IndexError, ValueError, AssertionError)
# What TensorFlow and Keras say of a variable of another model.
_OTHER_SHAPE = re.compile(
    r"incompatible tensor with shape|shapes? .* (incompatible|mismatch)", re.I
)

_WRITING = ".writing"


def save(checkpoint: tf.train.Checkpoint, folder: pathlib.Path, step: int, keep: int) -> None:
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
    except (tf.errors.OpError, OSError) as error:
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
    checkpoint: tf.train.Checkpoint,
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
        other shapes.
    """
    for step in steps(folder):
        path = str(folder / f"ckpt-{step}")
        try:
            status = checkpoint.read(path)
            status.assert_existing_objects_matched()
            if not partial:
                status.assert_consumed()
        except _DAMAGE as error:
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
    if any(folder.glob("ckpt-*.index")):
        raise InputError(
            f"{folder} must hold a sound checkpoint, but none of its files can be restored; "
            "use --restart to move the run aside and start afresh"
        )
    return None
