"""How a published model is called: its input, its signatures and its steps."""

import dataclasses
from collections.abc import Sequence

from hne_tf.errors import InputError
from hne_tf.exported.typed_json import Count, Name, Whole
from hne_tf.tree import Step

# Begins the name of an average that keeps the answer of a smaller size where the new one is
# less sure, see `models.averaging`.
CACHED = "cached_"


def running_sum_width(classes: int, average: str) -> int:
    """Numbers per image of a `running_sum`: the sum, and beside it the answer kept if one is."""
    return 2 * classes if average.startswith(CACHED) else classes


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """What is done to pixels, per channel; callers send raw ones if it is `inside_the_model`."""

    inside_the_model: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class ModelInput:
    """What ensembles take: `images`, uint8 `[batch, height, width, channels]`.

    Attributes:
      name: `"images"`.
      dtype: `"uint8"`.
      shape: `(None, height, width, channels)`.
      normalisation: for the record; TFLite files have it.

    Raises:
      InputError: for another input.
    """

    name: str
    dtype: str
    shape: tuple[Count | None, ...]
    normalisation: Normalisation | None = None

    def __post_init__(self) -> None:
        batch, *sizes = self.shape or (1,)
        fits = batch is None and len(sizes) == 3 and None not in sizes
        if not fits or (self.name, self.dtype) != ("images", "uint8"):
            raise InputError(
                "input must be images, uint8 of shape [null, height, width, channels], "
                f"got {self.name!r:.20}, {self.dtype!r:.20} of {list(self.shape)!r:.60}"
            )


@dataclasses.dataclass(frozen=True)
class EnsembleSignature:
    """A signature that takes images.

    Attributes:
      name: `ensemble_<size>`, or `serving_default` for the full ensemble.
      size: number of leaves in its answer.
    """

    name: Name
    size: Count


@dataclasses.dataclass(frozen=True)
class StepSignature:
    """How to call a step.

    Attributes:
      signature: name of its signature.
      size: number of leaves in its answer.
      branch_block: see `tree.Step`.
      input: name of its first input, `"images"` or `"cache"`; from size 2 on,
        `running_sum` is the second.
      starts_from: what goes in there: `"images"`, or an output of an earlier step.
      caches: the outputs that later steps start from.
    """

    signature: Name
    size: Count
    branch_block: Whole
    input: Name
    starts_from: Name
    caches: tuple[Name, ...]

    @classmethod
    def of(cls, step: Step) -> "StepSignature":
        """The signature of a step of a tree."""
        from_images = step.branch_block == 0
        return cls(
            signature=f"step_{step.size}",
            size=step.size,
            branch_block=step.branch_block,
            input="images" if from_images else "cache",
            starts_from="images" if from_images else f"cache_{step.branch_block - 1}",
            caches=tuple(f"cache_{block}" for block in step.cached_blocks),
        )


def check_signatures(
    signatures: Sequence[EnsembleSignature], sizes: Sequence[int], leaves: int
) -> None:
    """Raises `InputError` unless ensembles of these sizes, and of all leaves, can be called."""
    if list(sizes) != sorted(set(sizes)) or sizes[-1:] != (leaves,):
        raise InputError(
            f"sizes must increase up to the number of leaves, {leaves}, got {sizes!r:.60}"
        )
    by_name = {entry.name: entry.size for entry in signatures}
    if len(by_name) != len(signatures) or max(by_name.values(), default=0) > leaves:
        raise InputError(
            "signatures must have names of their own and no more leaves than the tree, "
            f"got {list(by_name.items())!r:.60}"
        )
    for size in sizes:
        if by_name.get(f"ensemble_{size}") != size:
            raise InputError(f"signatures must hold ensemble_{size} of size {size}, got none")


def check_steps(steps: Sequence[StepSignature]) -> None:
    """Raises `InputError` unless each step starts from what those before it give."""
    known = {"images"}
    for number, step in enumerate(steps, start=1):
        from_images = step.starts_from == "images"
        fits = step.input == ("images" if from_images else "cache") and step.starts_from in known
        if not fits or step.size != number:
            raise InputError(
                f"step {number} must start from images or an earlier cache and have size "
                f"{number}, got {step!r:.160}"
            )
        known.update(step.caches)
    if len({step.signature for step in steps}) < len(steps):
        raise InputError("steps must have signatures of their own, got one of two steps")
