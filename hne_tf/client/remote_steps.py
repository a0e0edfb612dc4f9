"""The depth-first steps of a served model, all of one version."""

import math
import random
import time
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np

from hne_tf.client.budget_client import ServingClient
from hne_tf.client.messages import CallError, MixedBatchError, Outputs
from hne_tf.exported import output_filters
from hne_tf.exported.interface import StepSignature, running_sum_width
from hne_tf.exported.manifest import Manifest

# Of a step whose walk has no deadline: a hanging server must not hang the caller.
_STEP_TIMEOUT_S = 10.0
# Calls of a step that was batched with other shapes, and the longest pause before the next.
_MIXED_CALLS, _MIXED_PAUSE_S = 4, 0.01


class VersionGoneError(CallError):
    """The version that answered the first step is not served any more."""


class RemoteSteps:
    """The steps of a served model: a `hne_tf.exported.steps.StepRunner`.

    The first step is answered by the newest version; the others ask for the same one,
    because caches and sums of two versions make an answer of neither. One walk at a
    time.

    Args:
      client: of the model.
      manifest: of the model.
      end_s: when calls are given up, on the clock of `time.perf_counter`.
    """

    def __init__(self, client: ServingClient, manifest: Manifest, end_s: float = math.inf) -> None:
        self.steps = manifest.steps
        self.image_shape = manifest.image_shape
        self.class_names = manifest.classes
        self.average = manifest.average
        self._client = client
        self._end_s = end_s
        self._version: int | None = None

    def run(self, step: StepSignature, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Computes one step on the server; see `StepRunner.run`.

        Raises:
          VersionGoneError: if the version of the first step is not served any more.
          CallError: if the server does not answer in time, refuses, or answers other
            than the manifest says.
        """
        if step.size == 1:
            self._version = None
        try:
            outputs = self._call(step.signature, inputs)
        except CallError as error:
            if self._version is not None and error.code is grpc.StatusCode.NOT_FOUND:
                raise VersionGoneError(str(error), error.code) from error
            raise
        if self._version not in (None, outputs.version):
            raise VersionGoneError(
                f"all steps must be of version {self._version}, "
                f"got one of version {outputs.version}",
                grpc.StatusCode.NOT_FOUND,
            )
        self._version = outputs.version
        self._check(step, outputs.arrays, len(next(iter(inputs.values()))))
        return outputs.arrays

    def _call(self, signature: str, inputs: Mapping[str, Any]) -> Outputs:
        for attempt in range(1, _MIXED_CALLS + 1):
            timeout_s = min(_STEP_TIMEOUT_S, self._end_s - time.perf_counter())
            try:
                return self._client.run(
                    signature,
                    inputs,
                    output_filters.STEP,
                    timeout_s=timeout_s,
                    version=self._version,
                )
            except MixedBatchError:
                if attempt == _MIXED_CALLS:
                    raise
            # So that those of one batch do not meet in the next.
            time.sleep(random.uniform(0.0, _MIXED_PAUSE_S))
        raise AssertionError("the last call returns or raises")

    def _check(self, step: StepSignature, arrays: Mapping[str, Any], rows: int) -> None:
        """Raises `CallError` unless the arrays are what the manifest says of a step."""
        names = ("running_sum", "probabilities", *step.caches)
        classes = len(self.class_names)
        numbers = running_sum_width(classes, self.average)
        fits = all(name in arrays and arrays[name].shape[:1] == (rows,) for name in names)
        if not fits or (
            (arrays["running_sum"].shape, arrays["probabilities"].shape)
            != ((rows, numbers), (rows, classes))
        ):
            got = {name: list(array.shape) for name, array in arrays.items()}
            raise CallError(
                f"manifest must be that of the model served: {step.signature} must give "
                f"{list(names)} for {rows} images and {len(self.class_names)} classes, got {got}",
                grpc.StatusCode.INTERNAL,
            )
