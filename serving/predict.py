"""Classifies pictures with the largest ensemble that a time budget allows.

Asks a running server, TF Serving or `hne-serve`. The budget is per picture, from
call to answer; decoding the picture is not in it.

  python -m serving.predict --model=digits --budget_ms=5 picture.png
  python -m serving.predict --model=digits --latencies picture.png
"""

import json
import math
import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from hne_tf.bin import app
from hne_tf.errors import InputError

if TYPE_CHECKING:
    from serving.budget import BudgetPolicy
    from serving.client import ServingClient, Signature
    from serving.manifest import ServingManifest

# Late answers are reported, not cut off, but a hanging server must not hang the user.
_MIN_TIMEOUT_S = 10.0


def define_flags(values: flags.FlagValues, arguments: list[str]) -> None:
    """Adds the client's flags to `values`."""
    del arguments
    flags.DEFINE_string("server", "127.0.0.1:8500", "host:port of the server.", flag_values=values)
    flags.DEFINE_string("model", None, "Name of the model there.", flag_values=values)
    flags.DEFINE_list(
        "budget_ms",
        [],
        "Milliseconds allowed per picture; each of several budgets is answered in turn.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "latencies",
        False,
        "Print the latency that is expected of each ensemble size as JSON, and ask nothing.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "estimates",
        None,
        "File with what --latencies printed, used instead of measuring again.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "manifest",
        None,
        "hne_manifest.json of the model: gives class names and latencies, which are "
        "otherwise measured by calling every ensemble size.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "resize", False, "Fit pictures to the model's size and channels.", flag_values=values
    )


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Prints one line per budget and picture."""
    budgets_ms = _check_flags(values, arguments)
    from serving.budget import read_policy
    from serving.manifest import read_manifest
    from serving.pictures import read_picture, to_image

    manifest = read_manifest(values.manifest) if values.manifest else None
    pictures = [read_picture(path) for path in arguments]

    with app.quiet_import():
        from serving.client import ServingClient

    with ServingClient(values.server, values.model) as client:
        sizes, shape = _ensembles(client.metadata(), values.model)
        if manifest:
            _check_manifest(manifest, sizes, shape)
        images = {
            path: to_image(picture, path, shape, values.resize)
            for path, picture in zip(arguments, pictures, strict=True)
        }
        if values.estimates:
            policy = read_policy(values.estimates, sizes)
        else:
            policy = _policy(client, manifest, sizes, images[arguments[0]])
        if values.latencies:
            print(json.dumps(policy.latency_ms))
        for budget_ms in budgets_ms:
            _answer_within(budget_ms, policy.choose(budget_ms), client, manifest, images)


def _check_flags(values: flags.FlagValues, pictures: Sequence[str]) -> list[float]:
    """Returns the budgets in milliseconds; raises `InputError` for flags that make no sense."""
    if not values.model:
        raise InputError("--model must name the model, got none")
    if bool(values.budget_ms) == values.latencies:
        raise InputError(
            "--budget_ms must give the milliseconds per picture, or --latencies ask for the "
            f"choice, got {'both' if values.latencies else 'none'}"
        )
    budgets_ms = []
    for text in values.budget_ms:
        try:
            budgets_ms.append(float(text))
        except ValueError:
            raise InputError(f"--budget_ms must be numbers, got {text!r}") from None
        if not (budgets_ms[-1] > 0 and math.isfinite(budgets_ms[-1])):
            raise InputError(f"--budget_ms must be more than 0, got {text}")
    if not pictures:
        raise InputError("at least one picture file must be given, got none")
    return budgets_ms


def _answer_within(
    budget_ms: float,
    size: int,
    client: "ServingClient",
    manifest: "ServingManifest | None",
    images: dict[str, np.ndarray],
) -> None:
    """Asks the ensemble of `size` about each image, by path, and prints the answers."""
    from serving.budget import WARM_UP_CALLS

    timeout_s = max(_MIN_TIMEOUT_S, 10 * budget_ms / 1000)
    # The size's first calls can be slow, and their time is not the budget's matter.
    for _ in range(WARM_UP_CALLS):
        client.predict(next(iter(images.values()))[None], f"ensemble_{size}", timeout_s)
    for path, image in images.items():
        start = time.perf_counter()
        outputs = client.predict(image[None], f"ensemble_{size}", timeout_s)
        taken_ms = 1000 * (time.perf_counter() - start)
        answer = _answer(outputs["probabilities"][0], manifest)
        late = ", late" if taken_ms > budget_ms else ""
        print(f"{path}: {answer}, ensemble of {size}, {taken_ms:.2f} ms of {budget_ms:g} ms{late}")


def _ensembles(
    signatures: "dict[str, Signature]", model: str
) -> tuple[list[int], tuple[int, int, int]]:
    """Returns the ensemble sizes on offer and the height, width and channels they take."""
    sizes = sorted(
        int(match.group(1))
        for match in map(re.compile(r"ensemble_(\d+)").fullmatch, signatures)
        if match
    )
    if not sizes:
        raise InputError(
            f"a model must have signatures ensemble_<size>, got {sorted(signatures)} of {model!r}"
        )
    signature = signatures[f"ensemble_{sizes[0]}"]
    spec = signature.inputs.get("images")
    if (
        len(signature.inputs) != 1
        or "probabilities" not in signature.outputs
        or spec is None
        or spec.dtype != "uint8"
        or spec.shape is None
        or len(spec.shape) != 4
        or None in spec.shape[1:]
    ):
        raise InputError(
            "a model must take images, uint8 [batch, height, width, channels] of a fixed size, "
            f"and give probabilities, got {signature} of {model!r}"
        )
    return sizes, spec.shape[1:]


def _check_manifest(
    manifest: "ServingManifest", sizes: list[int], shape: tuple[int, int, int]
) -> None:
    if not set(manifest.p95_ms) <= set(sizes) or manifest.image_shape != shape:
        raise InputError(
            f"manifest must be that of the model served (sizes {sizes}, images {list(shape)}), "
            f"got sizes {sorted(manifest.p95_ms)}, images {list(manifest.image_shape)}"
        )


def _policy(
    client: "ServingClient",
    manifest: "ServingManifest | None",
    sizes: list[int],
    image: np.ndarray,
) -> "BudgetPolicy":
    from serving.budget import measured_policy, profiled_policy

    def call(size: int) -> None:
        client.predict(image[None], f"ensemble_{size}", _MIN_TIMEOUT_S)

    if manifest:
        return profiled_policy(call, manifest.p95_ms)
    return measured_policy(call, sizes)


def _answer(probabilities: np.ndarray, manifest: "ServingManifest | None") -> str:
    """Returns class and probability of `[classes]` probabilities, for people."""
    if manifest and len(manifest.classes) != len(probabilities):
        raise InputError(
            f"manifest must name the model's {len(probabilities)} classes, "
            f"got {len(manifest.classes)} names"
        )
    best = int(probabilities.argmax())
    name = manifest.classes[best] if manifest else f"class {best}"
    return f"{name} ({probabilities[best]:.3f})"


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the binary; returns its exit code."""
    return app.run("hne-predict", define_flags, main, argv)


if __name__ == "__main__":
    sys.exit(run())
