"""The manifest of a published model: what a client or an operator has to know of it.

One reader and one writer, for versions' folders and TFLite files. The keys in the file are the
fields of `Manifest`; those of `Manifest.record` lie between them. What was not measured is
absent. This module needs no TensorFlow.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.exported import typed_json, versions
from hne_tf.exported.measurements import (
    Accuracy,
    Cost,
    EarlyStopping,
    MeasuredLatency,
    Measurement,
    Storage,
)
from hne_tf.exported.typed_json import Count, Name, Whole
from hne_tf.tree import Paths, Step, Tree

FORMAT = 1

# Objects and lists in each other, the manifest itself is the first.
_MOST_LEVELS = 32


@dataclasses.dataclass(frozen=True)
class EnsembleSignature:
    """A signature that answers from the first `size` leaves."""

    name: Name
    size: Count


@dataclasses.dataclass(frozen=True)
class StepSignature:
    """How to call a step.

    Attributes:
      signature: its name.
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


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """What is done to pixels, per channel; clients send raw ones if it is `inside_the_model`."""

    inside_the_model: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class ModelInput:
    """What ensembles take: `images`, uint8 `[any, height, width, channels]`."""

    name: str
    dtype: str
    shape: tuple[Count | None, ...]
    normalisation: Normalisation | None = None

    def __post_init__(self) -> None:
        batch, *sizes = self.shape or (1,)
        if (self.name, self.dtype) != ("images", "uint8") or batch is not None:
            raise InputError(
                "input must be images, uint8 of shape [null, height, width, channels], "
                f"got {self.name!a}, {self.dtype!a} of {list(self.shape)}"
            )
        if len(sizes) != 3 or None in sizes:
            raise InputError(
                f"input.shape must be [null, height, width, channels], got {list(self.shape)}"
            )


@dataclasses.dataclass(frozen=True)
class Flatbuffer:
    """Length and SHA-256 of the model in a TFLite file."""

    bytes: Count
    sha256: Name


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a published model is, and what it was measured to be.

    Attributes:
      model: name that it is served under.
      average: how leaves are averaged, see `averaging.AVERAGES`.
      sizes: exported ensemble sizes, increasing; the last is the number of leaves.
      signatures: those that take images; among them is `ensemble_<size>` for each size.
      steps: all depth-first steps; step n is `steps[n - 1]`.
      classes: name of each class.
      input: of the signatures.
      branching: of a `Tree`.
      exits: of `Exits`; just one of the two is given.
      cost: of each size, one image in one call.
      accuracy: held-out accuracy by size.
      early_stopping: thresholds of confidence for mean costs per image.
      latency: on the machine where it was exported or profiled.
      storage: bytes of graph and weights.
      mode: what the numbers in a TFLite file are, one of `tflite_file.MODES`.
      pixels: how a picture becomes an input, as JSON values.
      versions: of the packages that wrote the model.
      flatbuffer: of a TFLite file.
      record: what else is known, JSON values by key, such as the `step` of the run that
        the model comes from.

    Raises:
      InputError: if the parts do not fit each other.
    """

    model: Name
    average: Name
    sizes: tuple[Count, ...]
    signatures: tuple[EnsembleSignature, ...]
    steps: tuple[StepSignature, ...]
    classes: tuple[str, ...]
    input: ModelInput
    branching: tuple[Count, ...] | None = None
    exits: Count | None = None
    cost: Mapping[Count, Cost] = dataclasses.field(default_factory=dict)
    accuracy: Accuracy | None = None
    early_stopping: EarlyStopping | None = None
    latency: MeasuredLatency | None = None
    storage: Storage | None = None
    mode: Name | None = None
    pixels: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    flatbuffer: Flatbuffer | None = None
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.branching is None) == (self.exits is None):
            raise InputError("just one of branching and exits must be given")
        if not self.classes:
            raise InputError("classes must not be empty")
        _check_sizes(self)
        _check_steps(self)
        for name, by_size in (
            ("cost", self.cost),
            ("accuracy.by_size", self.accuracy.by_size if self.accuracy else {}),
        ):
            if by_size and not set(self.sizes) <= by_size.keys():
                missing = sorted(set(self.sizes) - by_size.keys())
                raise InputError(f"{name} must hold every size, got none for {missing}")
        for row in self.early_stopping.curve if self.early_stopping else ():
            if len(row.thresholds) != self.leaves - 1:
                raise InputError(
                    f"early_stopping must have {self.leaves - 1} thresholds for {self.leaves} "
                    f"leaves, got {len(row.thresholds)}"
                )
        _check_record(self.record)

    @classmethod
    def of_tree(
        cls,
        tree: Paths,
        model: str,
        classes: Sequence[str],
        image_shape: Sequence[int],
        *,
        sizes: Sequence[int] | None = None,
        average: str = "logits",
        serving_default: bool = True,
        normalisation: Normalisation | None = None,
        **others: Any,
    ) -> "Manifest":
        """The manifest of a model with all steps of a tree.

        Args:
          tree: a `Tree` or `Exits`.
          model: name that the model is served under.
          classes: name of each class.
          image_shape: `(height, width, channels)`.
          sizes: ensemble sizes with a signature, `tree.sizes` by default.
          average: how leaves are averaged.
          serving_default: whether there is a signature of that name, the full ensemble.
          normalisation: inside the graph.
          others: further attributes.
        """
        sizes = tuple(sizes or tree.sizes)
        default = [EnsembleSignature("serving_default", tree.leaves)] if serving_default else []
        return cls(
            model=model,
            average=average,
            sizes=sizes,
            signatures=(*default, *(EnsembleSignature(f"ensemble_{n}", n) for n in sizes)),
            steps=tuple(map(StepSignature.of, tree.steps)),
            classes=tuple(classes),
            input=ModelInput("images", "uint8", (None, *image_shape), normalisation),
            **dataclasses.asdict(tree),
            **others,
        )

    @classmethod
    def from_text(cls, text: str | bytes, source: str) -> "Manifest":
        """Reads a manifest.

        Args:
          text: JSON.
          source: where it is from, for messages.

        Raises:
          InputError: for anything that `to_text` does not write and no earlier version has
            written.
        """
        try:
            content = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{source} must be JSON: {error}") from None
        found = content.get("format") if isinstance(content, dict) else content
        if found is True or found != FORMAT:
            raise InputError(f"{source} must have format {FORMAT}, got {found!a:.40}")
        if not _is_shallow(content):
            raise InputError(f"{source} must have at most {_MOST_LEVELS} levels, got more")
        keys = {field.name for field in dataclasses.fields(cls)} - {"record"}
        # A key `record` is one of the record, as everything unknown is.
        known = {key: value for key, value in content.items() if key in keys}
        record = {key: value for key, value in content.items() if key not in {*keys, "format"}}
        try:
            return typed_json.decode(cls, {**known, "record": record}, "it")
        except InputError as error:
            raise InputError(f"{source} must be a manifest: {error}") from None

    def to_text(self) -> str:
        """The manifest as JSON."""
        return json.dumps(self.to_json(), indent=2) + "\n"

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        values = typed_json.encode(dataclasses.replace(self, record={}))
        return {"format": FORMAT, **values, **self.record}

    @functools.cached_property
    def tree(self) -> Paths:
        """The tree of the model's networks."""
        return Exits(self.exits) if self.branching is None else Tree(self.branching)

    @property
    def leaves(self) -> int:
        """Number of networks."""
        return self.tree.leaves

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self.input.shape[1:]

    def signature_of(self, size: int) -> str | None:
        """Name of the signature with the answer of a size; None if only the steps come to it."""
        return f"ensemble_{size}" if size in self.sizes else None

    @property
    def accuracy_by_size(self) -> dict[int, float]:
        """Held-out accuracy of the exported sizes.

        Raises:
          InputError: if none was measured.
        """
        if not self.accuracy:
            raise InputError(f"the manifest of {self.model!a} must hold accuracies, got none")
        return {size: self.accuracy.by_size[size] for size in self.sizes}

    @property
    def latency_ms(self) -> dict[int, dict[int, float]]:
        """Measured latency by batch size and ensemble size: 95th percentile, without transport.

        Raises:
          InputError: if a size has no latency of one image.
        """
        rows: dict[int, dict[int, float]] = {}
        for row in self.latency.measurements if self.latency else ():
            for size in self.sizes:
                if row.signature == self.signature_of(size):
                    rows.setdefault(row.batch_size, {})[size] = row.p95_ms
        missing = sorted(set(self.sizes) - rows.get(1, {}).keys())
        if missing:
            raise InputError(
                f"the manifest of {self.model!a} must hold a latency at batch size 1 for every "
                f"ensemble size, got none for {missing}"
            )
        return rows

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes that every ensemble size was measured with, increasing.

        Raises:
          InputError: if there are none, or a size was measured with others.
        """
        measured = {f"ensemble_{size}": set() for size in self.sizes}
        for row in self.latency.measurements if self.latency else ():
            measured.get(row.signature, set()).add(row.batch_size)
        first, *others = measured.values()
        if not first or any(each != first for each in others):
            found = {name: sorted(sizes) for name, sizes in measured.items()}
            raise InputError(
                f"the manifest of {self.model!a} must hold latencies of the same batch sizes for "
                f"every ensemble size, got {found}"
            )
        return tuple(sorted(first))

    def measurement(self, size: int, batch_size: int, threads: int | None = None) -> Measurement:
        """The measured latency of an ensemble size.

        Args:
          size: an exported size.
          batch_size: images per call.
          threads: that compute, by default those that servers go by.

        Raises:
          InputError: if it was not measured.
        """
        wanted = self.latency.rows(threads) if self.latency else ()
        for row in wanted:
            if (row.signature, row.batch_size) == (self.signature_of(size), batch_size):
                return row
        by = "" if threads is None else f" by {threads} threads"
        raise InputError(
            f"the manifest of {self.model!a} must hold a latency of ensemble size {size} at batch "
            f"size {batch_size}{by}, got none"
        )

    def thresholds(self, multiply_adds: float) -> list[float]:
        """Thresholds of early stopping for a mean cost per image.

        Args:
          multiply_adds: mean per image that is allowed.

        Returns:
          Those of the largest target that is not above it: a threshold for each size from 1 to
          N - 1, for `AnytimeSession.run(confidence=…)`.

        Raises:
          InputError: if the manifest has none, or none as low.
        """
        curve = self.early_stopping.curve if self.early_stopping else ()
        if not curve:
            raise InputError(
                f"the manifest of {self.model!a} must hold thresholds of early stopping, got one "
                "without: export a model of more than one leaf again, with validation data"
            )
        fitting = [row for row in curve if row.target_multiply_adds <= multiply_adds]
        if not fitting:
            lowest = min(row.target_multiply_adds for row in curve)
            raise InputError(
                f"multiply_adds must be at least {lowest:,}, the lowest target of the manifest, "
                f"got {multiply_adds:,.10g}"
            )
        return list(max(fitting, key=lambda row: row.target_multiply_adds).thresholds)


def read_manifest(path: str | pathlib.Path) -> Manifest:
    """Reads the manifest of a published version.

    Args:
      path: a version's folder, the folder of a model's versions for the newest one, or the
        manifest's own file.

    Raises:
      InputError: for anything else.
    """
    path = pathlib.Path(path)
    file = versions.version_folder(path) / versions.MANIFEST if path.is_dir() else path
    try:
        text = file.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"a manifest must be a readable file, got {str(file)!a}: {reason}"
        ) from None
    return Manifest.from_text(text, ascii(str(file)))
