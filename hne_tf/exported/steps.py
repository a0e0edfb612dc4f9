"""The depth-first steps of a model behind one interface: live, SavedModel or TFLite.

A step goes from n - 1 to n leaves and computes only the nodes of the tree that no
earlier step has computed; `export.signatures.step_signature` says what goes in and
out. Steps are described as in the manifest: dicts of `signature`, `size`,
`branch_block`, `input`, `starts_from` and `caches`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from hne_tf.errors import InputError
from hne_tf.exported import manifest as manifests
from hne_tf.exported import tflite_file
from hne_tf.tree import is_positive_integer

Step = Mapping[str, Any]


class StepRunner(Protocol):
    """What computes the steps of a model.

    Attributes:
      steps: all of them, in order; step n is `steps[n - 1]`.
      image_shape: `(height, width, channels)` of the uint8 images.
      class_names: name of each class.
    """

    steps: Sequence[Step]
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]

    def run(self, step: Step, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Computes one step.

        Args:
          step: one of `steps`.
          inputs: NumPy arrays or what an earlier step gave out, each `[batch, ...]`:
            `images` or `cache` (as `step["input"]` says), and `running_sum` from
            step 2 on.

        Returns:
          `running_sum` and `probabilities`, float32 `[batch, classes]`, and the
          `step["caches"]`: arrays, or tensors of a kind that NumPy can read. Later
          calls leave them as they are.

        Raises:
          InputError: for other inputs than these.
        """


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """An input that a step takes; a dimension of None may be any from 1."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype

    def check(self, value: Any) -> None:
        """Raises `InputError` unless a step can take `value`."""
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
    InputSpec("images", (None, *image_shape), np.dtype(np.uint8)).check(images)


def load(path: str | pathlib.Path, threads: int | None = None) -> StepRunner:
    """Opens a published version or a TFLite file.

    Args:
      path: a version's folder with its manifest inside, or a `.tflite` file.
      threads: of a TFLite file; those of TensorFlow are a setting of the process
        (`tf.config.threading`).

    Raises:
      InputError: for anything else.

    Example:
      >>> runner = load("models/digits/1")
      >>> len(runner.steps), runner.image_shape
      (16, (8, 8, 1))
    """
    path = pathlib.Path(path)
    if path.suffix == ".tflite" and path.is_file():
        return TFLiteSteps(path, threads)
    if not (path / manifests.MANIFEST).is_file():
        raise InputError(
            f"a model must be a .tflite file or a version's folder with {manifests.MANIFEST}, "
            f"got {str(path)!r}"
        )
    if threads is not None:
        raise InputError(
            "threads are set for a .tflite file; a SavedModel has those of the process, "
            f"got threads={threads!r}"
        )
    return SavedModelSteps(path)


class TensorFlowSteps:
    """Steps that are concrete TensorFlow functions."""

    def __init__(
        self,
        steps: Sequence[Step],
        image_shape: Sequence[int],
        class_names: Sequence[str],
        functions: Mapping[str, Callable[..., Any]],
    ) -> None:
        self.steps = tuple(steps)
        self.image_shape = tuple(image_shape)
        self.class_names = tuple(class_names)
        self._functions = {
            step["signature"]: functions[step["signature"]].inference_fn for step in self.steps
        }
        self._specs = {
            name: [
                InputSpec(spec.name, tuple(spec.shape), np.dtype(spec.dtype.as_numpy_dtype))
                for spec in function.function_type.flat_inputs
            ]
            for name, function in self._functions.items()
        }

    def run(self, step: Step, inputs: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        """See `StepRunner`."""
        name = step["signature"]
        _check_inputs(self._specs[name], inputs)
        # Calling the signature itself would take as long again as a small step:
        # it binds arguments by name and looks for gradient tapes.
        return self._functions[name].call_preflattened(
            [tf.convert_to_tensor(inputs[spec.name]) for spec in self._specs[name]]
        )


class SavedModelSteps(TensorFlowSteps):
    """The steps of a published version.

    Args:
      folder: the version, its manifest inside.

    Raises:
      InputError: if the manifest describes no steps or others than the model has.
    """

    def __init__(self, folder: str | pathlib.Path) -> None:
        folder = pathlib.Path(folder)
        steps, image_shape, classes = _described(manifests.read_manifest(folder), folder)
        # Signatures live only as long as the model that they were loaded with.
        self._loaded = tf.saved_model.load(str(folder))
        _check_signatures(steps, self._loaded.signatures, folder)
        super().__init__(steps, image_shape, classes, self._loaded.signatures)


class TFLiteSteps:
    """The steps of a TFLite file; for one thread of Python at a time.

    Args:
      path: the file, its manifest inside.
      threads: that compute, as many as LiteRT likes by default.

    Raises:
      InputError: for a file that is none of ours or not whole, or a number of
        threads that is not 1 or more.
    """

    def __init__(self, path: str | pathlib.Path, threads: int | None = None) -> None:
        path = pathlib.Path(path)
        if threads is not None and not is_positive_integer(threads):
            raise InputError(f"threads must be 1 or more, got {threads!r}")
        manifest = tflite_file.read_manifest(path)
        self.steps, self.image_shape, self.class_names = _described(manifest, path)
        interpreter = Interpreter(str(path), num_threads=threads)
        _check_signatures(self.steps, interpreter.get_signature_list(), path)
        self._functions = {
            step["signature"]: interpreter.get_signature_runner(step["signature"])
            for step in self.steps
        }
        self._specs = {
            name: [
                InputSpec(
                    key,
                    tuple(None if size < 0 else int(size) for size in detail["shape_signature"]),
                    np.dtype(detail["dtype"]),
                )
                for key, detail in function.get_input_details().items()
            ]
            for name, function in self._functions.items()
        }

    def run(self, step: Step, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """See `StepRunner`."""
        name = step["signature"]
        # A shape that LiteRT refuses leaves the interpreter unfit for any other.
        _check_inputs(self._specs[name], inputs)
        return self._functions[name](**inputs)


def _check_inputs(specs: Sequence[InputSpec], inputs: Mapping[str, Any]) -> None:
    names = [spec.name for spec in specs]
    if inputs.keys() != set(names):
        raise InputError(f"the step takes {', '.join(sorted(names))}, got {', '.join(inputs)}")
    for spec in specs:
        spec.check(inputs[spec.name])
    if len({value.shape[0] for value in inputs.values()}) > 1:
        sizes = {name: value.shape[0] for name, value in inputs.items()}
        raise InputError(f"all inputs of a step must have one batch size, got {sizes}")


def _described(
    manifest: Any, path: pathlib.Path
) -> tuple[tuple[Step, ...], tuple[int, ...], tuple[str, ...]]:
    """Steps, image shape and class names of a manifest."""
    try:
        _, *image_shape = manifest["input"]["shape"]
        return tuple(manifest["steps"]), tuple(image_shape), tuple(manifest["classes"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            "a model's manifest must describe its input, steps and classes, "
            f"got {str(path)!r} without: {error}"
        ) from None


def _check_signatures(steps: Sequence[Step], names: Mapping[str, Any], path: pathlib.Path) -> None:
    missing = [step["signature"] for step in steps if step["signature"] not in names]
    if missing or not steps:
        raise InputError(
            "a model must have a signature for each step of its manifest, "
            f"got {str(path)!r} with {len(steps)} steps and without {', '.join(missing) or 'any'}"
        )
