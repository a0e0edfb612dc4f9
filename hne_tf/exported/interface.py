"""How a published model is called: its input, its signatures and its steps."""

import dataclasses
import re
from collections.abc import Iterable, Sequence

from hne_tf.errors import InputError
from hne_tf.exported.typed_json import Count, Name, Whole
from hne_tf.tree import Step

# Begins the name of an average that keeps the answer of a smaller size where the new one is
# less sure, see `models.averaging`.
CACHED = "cached_"

# Averages that a sum over leaves is enough for, whichever leaves and in whatever order.
SUMS = ("logits", "probabilities", "sum", "product")

# An output of `LeavesSignature`: what the logits of 1 to N leaves are divided by.
TEMPERATURES = "temperatures"


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


@dataclasses.dataclass(frozen=True, order=True)
class LeavesSignature:
    """A signature of some leaves, so that several servers can compute an answer together.

    It takes images and gives `sum_output(average)`, float32 `[batch, classes]`: what its
    leaves add to the running sum. Where the model's probabilities are calibrated it gives
    `temperatures` too, float32 `[batch, N]`.

    Attributes:
      first: its first leaf, from 0.
      stop: the leaf after its last.

    Raises:
      InputError: unless there is a leaf from `first` to before `stop`.
    """

    first: Whole
    stop: Count

    def __post_init__(self) -> None:
        whole = {type(self.first), type(self.stop)} == {int}
        if not whole or not 0 <= self.first < self.stop:
            raise InputError(
                "leaves must be from a to before b, 0 <= a < b, "
                f"got {self.first!r:.20} and {self.stop!r:.20}"
            )

    @classmethod
    def of(cls, pair: Sequence[int]) -> "LeavesSignature":
        """The signature of the leaves from `pair[0]` to before `pair[1]`."""
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(f"leaves must be pairs (a, b), got {pair!r:.40}")
        return cls(*pair)

    @property
    def signature(self) -> str:
        """Name of the signature, `leaves_<first>_<stop>`."""
        return f"leaves_{self.first}_{self.stop}"

    @property
    def size(self) -> int:
        """Number of its leaves."""
        return self.stop - self.first

    @classmethod
    def named(cls, signature: str) -> "LeavesSignature | None":
        """The leaves of a signature by its name; None if it is another kind."""
        found = re.fullmatch(r"leaves_(0|[1-9]\d{0,8})_([1-9]\d{0,8})", signature)
        bounds = tuple(map(int, found.groups())) if found else (0, 0)
        return cls(*bounds) if bounds[0] < bounds[1] else None


def sum_output(average: str) -> str:
    """The output of a `LeavesSignature` that holds its sum; the name says how to answer from it."""
    return f"running_sum_{average}"


def averaged_by(outputs: Iterable[str]) -> str | None:
    """The average that the outputs of a `LeavesSignature` are for; None if they are no sums."""
    return next((average for average in SUMS if sum_output(average) in outputs), None)


def split(leaves: int, parts: int) -> tuple[LeavesSignature, ...]:
    """All leaves in so many parts, one after the other, whose sizes differ by one at most.

    Raises:
      InputError: unless there is a leaf for each of two parts or more.
    """
    if not 2 <= parts <= leaves:
        raise InputError(f"a spread must have from 2 parts to one a leaf, {leaves}, got {parts}")
    bounds = [part * leaves // parts for part in range(parts + 1)]
    return tuple(map(LeavesSignature, bounds[:-1], bounds[1:]))


def check_leaves(parts: Sequence[LeavesSignature], average: str, leaves: int) -> None:
    """Raises `InputError` unless a model of so many leaves can have these signatures."""
    if parts and average not in SUMS:
        raise InputError(
            f"leaves of several servers must be averaged by one of {', '.join(SUMS)}, which "
            f"are sums over leaves, got {average!r}"
        )
    beyond = [part.signature for part in parts if part.stop > leaves]
    if beyond or len(set(parts)) < len(parts):
        raise InputError(
            f"leaves signatures must be different and of the leaves 0 to {leaves - 1}, "
            f"got {[part.signature for part in parts]!r:.80}"
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
