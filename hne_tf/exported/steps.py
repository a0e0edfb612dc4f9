"""The signatures of a model as they are called, and the depth-first steps among them.

A step goes from n - 1 to n leaves and computes only the nodes of the tree that no
earlier step has computed; `export.signatures.step_signature` says what goes in and
out.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from hne_tf.errors import InputError
from hne_tf.exported.interface import StepSignature


@dataclasses.dataclass(frozen=True)
class SignatureInput:
    """An input of a signature; a dimension of None may be any from 1."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype

    def check(self, value: Any) -> None:
        """Raises `InputError` unless the input can be `value`."""
        shape, dtype = tuple(value.shape), value.dtype
        fits = len(shape) == len(self.shape) and all(
            size == expected or (expected is None and size > 0)
            for size, expected in zip(shape, self.shape, strict=True)
        )
        if not fits or dtype != self.dtype:
            rule = ", ".join("1 or more" if size is None else str(size) for size in self.shape)
            raise InputError(
                f"{self.name} must be {self.dtype.name} of shape [{rule}], "
                f"got {np.dtype(getattr(dtype, 'as_numpy_dtype', dtype)).name} of {list(shape)}"
            )


def check_images(images: np.ndarray, image_shape: Sequence[int]) -> None:
    """Raises `InputError` unless `images` are uint8 `[batch, *image_shape]`, at least one."""
    SignatureInput("images", (None, *image_shape), np.dtype(np.uint8)).check(images)


@dataclasses.dataclass(frozen=True)
class RunnableSignature:
    """A signature that can be called.

    Attributes:
      inputs: what it takes.
      function: maps inputs that fit, by name, to outputs by name.
    """

    inputs: tuple[SignatureInput, ...]
    function: Callable[[Mapping[str, Any]], dict[str, Any]]

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Computes the outputs.

        Args:
          inputs: NumPy arrays or what another signature gave out, each `[batch, ...]`.

        Returns:
          Arrays, or tensors of a kind that NumPy can read. Later calls leave them as
          they are.

        Raises:
          InputError: for other inputs than the signature takes.
        """
        # A shape that a converted graph refuses leaves LiteRT unfit for any other.
        if inputs.keys() != {each.name for each in self.inputs}:
            names = ", ".join(sorted(each.name for each in self.inputs))
            raise InputError(f"the signature takes {names}, got {', '.join(inputs)}")
        for each in self.inputs:
            each.check(inputs[each.name])
        if len({value.shape[0] for value in inputs.values()}) > 1:
            sizes = {name: value.shape[0] for name, value in inputs.items()}
            raise InputError(f"all inputs of a step must have one batch size, got {sizes}")
        return self.function(inputs)


class StepRunner(Protocol):
    """What computes the steps of a model.

    Attributes:
      steps: all of them, in order; step n is `steps[n - 1]`.
      image_shape: `(height, width, channels)` of the uint8 images.
      class_names: name of each class.
      average: how leaves are averaged, see `models.averaging.AVERAGES`.
    """

    steps: Sequence[StepSignature]
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    average: str

    def run(self, step: StepSignature, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Computes one step.

        Args:
          step: one of `steps`.
          inputs: as `RunnableSignature.run` takes them: `images` or `cache` (see
            `step.input`), and `running_sum` from step 2 on.

        Returns:
          `running_sum`, float32 `[batch, running_sum_width]`, `probabilities`, float32
          `[batch, classes]`, and the `step.caches`.

        Raises:
          InputError: for other inputs than these.
        """


class SignatureSteps:
    """The steps of a model that is in this process: a `StepRunner`.

    Args:
      steps: all of them, in order.
      image_shape: `(height, width, channels)`.
      class_names: name of each class.
      average: how leaves are averaged.
      signatures: what computes each step, by the name of its signature.
    """

    def __init__(
        self,
        steps: Sequence[StepSignature],
        image_shape: Sequence[int],
        class_names: Sequence[str],
        average: str,
        signatures: Mapping[str, RunnableSignature],
    ) -> None:
        self.steps = tuple(steps)
        self.image_shape = tuple(image_shape)
        self.class_names = tuple(class_names)
        self.average = average
        self._signatures = signatures

    def run(self, step: StepSignature, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """See `StepRunner`."""
        return self._signatures[step.signature].run(inputs)


def walk(runner: StepRunner, images: np.ndarray) -> dict[int, dict[str, Any]]:
    """What each step gives on a walk through all of them, by size.

    Args:
      runner: of the model.
      images: uint8 `[batch, height, width, channels]`.
    """
    outputs: dict[int, dict[str, Any]] = {}
    known: dict[str, Any] = {"images": images}
    for step in runner.steps:
        outputs[step.size] = runner.run(step, step_inputs(step, known))
        known |= outputs[step.size]
    return outputs


def step_inputs(step: StepSignature, known: Mapping[str, Any]) -> dict[str, Any]:
    """What a step takes, of the images and the outputs of the steps before it."""
    inputs = {step.input: known[step.starts_from]}
    if step.size > 1:
        inputs["running_sum"] = known["running_sum"]
    return inputs
