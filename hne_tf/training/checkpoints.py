"""Checkpoints that a run can always come back to."""

import pathlib
import re
from collections.abc import Callable

import tensorflow as tf

from hne_tf.errors import InputError

# What a damaged checkpoint raises on reading, by what is damaged.
_DAMAGE = (tf.errors.OpError, IndexError, ValueError, AssertionError)


def save(checkpoint: tf.train.Checkpoint, folder: pathlib.Path, step: int, keep: int) -> None:
    """Writes `ckpt-<step>` and removes all but the newest `keep`.

    TensorFlow's `checkpoint` file, which names the newest, is not needed:
    `restore_newest` looks at what is there.
    """
    checkpoint.write(str(folder / f"ckpt-{step}"))
    for old in steps(folder)[keep:]:
        for file in folder.glob(f"ckpt-{old}.*"):
            file.unlink()


def steps(folder: pathlib.Path) -> list[int]:
    """Steps that have checkpoint files in `folder`, sound or not, newest first."""
    found = (re.match(r"ckpt-(\d+)\.", file.name) for file in folder.glob("ckpt-*"))
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
      The step restored, or None if there is no trace of a checkpoint.

    Raises:
      InputError: if there are checkpoint files but none is sound.
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
            report(f"checkpoint {path} is damaged and passed over: {reason}")
            continue
        status.expect_partial()
        return step
    if any(folder.glob("ckpt-*")):
        raise InputError(
            f"{folder} must hold a sound checkpoint, but none of its files can be restored; "
            "use --restart to move the run aside and start afresh"
        )
    return None
