"""Classifies pictures with the largest ensemble that a time budget allows.

Asks a running server, TF Serving or `hne-serve`. The budget is per picture, from
call to answer; decoding the picture is not in it, nor is measuring every ensemble
size beforehand.

  python -m hne_tf.bin.predict --model=digits --budget_ms=5 picture.png
  python -m hne_tf.bin.predict --model=digits --latencies picture.png
"""

import json
import math
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from hne_tf.bin import app
from hne_tf.errors import InputError

if TYPE_CHECKING:
    import grpc

    from hne_tf.client.answers import Answer
    from hne_tf.exported.manifest import Manifest

# Late answers are reported, not cut off, but a hanging server must not hang the user.
_GRACE_MS = 10_000.0


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
        "Print the latency measured of each ensemble size as JSON, and classify nothing.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "manifest",
        None,
        "hne_manifest.json of the model, or a folder that holds it: names the classes, and says "
        "how pictures of any size are cropped and resized.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "tls_ca",
        None,
        "File with the certificates (PEM) that the server's must be signed by: "
        "the connection is encrypted.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "metadata",
        [],
        "key=value that goes with every call, such as authorization=Bearer ...; repeatable.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "resize",
        False,
        "Without a manifest that says how: fit pictures to the model's size and channels.",
        flag_values=values,
    )


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Prints one line per budget and picture."""
    budgets_ms = _check_flags(values, arguments)
    from hne_tf.client.pictures import read_all
    from hne_tf.data.pixels import Pixels
    from hne_tf.exported.manifest import read_manifest

    manifest = read_manifest(values.manifest) if values.manifest else None

    with app.quiet_import():
        from hne_tf.client.budget_client import BudgetClient
        from hne_tf.client.messages import ensembles

    with BudgetClient(
        values.server,
        values.model,
        manifest=manifest,
        credentials=_credentials(values.tls_ca),
        metadata=_metadata(values.metadata),
        grace_ms=_GRACE_MS,
    ) as client:
        sizes, shape = ensembles(client.learn().signatures, values.model)
        if manifest:
            _check_manifest(manifest, sizes, shape)
        known = Pixels.of_manifest(manifest) if manifest else None
        pictures = read_all(arguments, known or Pixels(*shape), bool(known) or values.resize)
        if not pictures.images:
            pictures.check()
        client.measure(pictures.images[0][1][None])
        if values.latencies:
            print(json.dumps({size: round(ms, 4) for size, ms in client.estimates_ms().items()}))
        for budget_ms in budgets_ms:
            for name, image in pictures.images:
                answer = client.predict(image[None], budget_ms)
                print(f"{name}: {_line(answer, budget_ms, manifest)}")
    # Those that could be read have their answers by now.
    pictures.check()


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


def _credentials(tls_ca: str | None) -> "grpc.ChannelCredentials | None":
    if tls_ca is None:
        return None
    import grpc

    try:
        return grpc.ssl_channel_credentials(pathlib.Path(tls_ca).read_bytes())
    except OSError as error:
        raise InputError(f"--tls_ca must be a readable file, got {tls_ca!r}: {error}") from error


def _metadata(texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [tuple(text.split("=", 1)) for text in texts]
    for text, pair in zip(texts, pairs, strict=True):
        if len(pair) < 2 or not re.fullmatch(r"[a-z0-9_.-]+", pair[0]):
            raise InputError(f"--metadata must be key=value, the key in lower case, got {text!r}")
    return pairs


def _line(answer: "Answer", budget_ms: float, manifest: "Manifest | None") -> str:
    """Returns an answer for one image in words."""
    late = ", late" if answer.latency_ms > budget_ms else ""
    return (
        f"{_best(answer.probabilities[0], manifest)}, ensemble of {answer.size}, "
        f"{answer.latency_ms:.2f} ms of {budget_ms:g} ms{late}"
    )


def _check_manifest(
    manifest: "Manifest", sizes: tuple[int, ...], shape: tuple[int, int, int]
) -> None:
    if not set(manifest.sizes) <= set(sizes) or manifest.image_shape != shape:
        raise InputError(
            "manifest must be that of the model served (sizes "
            f"{list(sizes)}, images {list(shape)}), "
            f"got sizes {list(manifest.sizes)}, images {list(manifest.image_shape)}"
        )


def _best(probabilities: np.ndarray, manifest: "Manifest | None") -> str:
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
