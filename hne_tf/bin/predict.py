"""Classifies pictures with the largest ensemble that a time budget allows.

Asks a running server, TF Serving or `hne-serve`. The budget is per request, from
call to answer. A request is one picture, or all of them with --batch. Decoding
pictures is not in the budget, nor is measuring every ensemble size beforehand.

A budget that is refused gets a line on standard error, and the next one is tried.
The exit code is 3 if all were refused, and 1 as soon as anything else fails.

  hne-predict --model=digits --budget_ms=5 picture.png
  hne-predict --model=digits --manifest=hne_manifest.json --latencies picture.png
  hne-predict --model=digits --manifest=hne_manifest.json --budget_for=1,4 --batch --score \\
      pictures/test/*/*.png
  hne-predict --model=digits --server=a:8500,b:8500 --spread --budget_ms=20 picture.png
"""

import math
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from hne_tf.bin import app
from hne_tf.errors import InputError

if TYPE_CHECKING:
    import grpc

    from hne_tf.client.answers import Answer
    from hne_tf.client.budget_client import BudgetClient
    from hne_tf.client.spread.answers import SpreadAnswer
    from hne_tf.client.spread_client import SpreadClient
    from hne_tf.data.pictures import Pictures
    from hne_tf.exported.manifest import Manifest

# Late answers are reported, not cut off, but a hanging server must not hang the user.
_GRACE_MS = 10_000.0
# Of what a size was measured to take, for --budget_for: room for what the next call takes.
_BUDGET_FACTOR = 1.3
_EXIT_REFUSED = 3

# Names of pictures, and the pictures, uint8 `[batch, height, width, channels]`.
Request = tuple[Sequence[str], np.ndarray]


def define_flags(values: flags.FlagValues, arguments: list[str]) -> None:
    """Adds the client's flags to `values`."""
    del arguments
    flags.DEFINE_list(
        "server", ["127.0.0.1:8500"], "host:port; of several with --spread.", flag_values=values
    )
    flags.DEFINE_bool(
        "spread",
        False,
        "Ask all servers for some leaves each, of a model exported with hne-export --spread.",
        flag_values=values,
    )
    flags.DEFINE_string("model", None, "Name of the model there.", flag_values=values)
    flags.DEFINE_list(
        "budget_ms",
        [],
        "Milliseconds allowed per request; each of several budgets is tried in turn.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "budget_for",
        [],
        "Instead of --budget_ms, ensemble sizes: the budget of each is "
        f"{_BUDGET_FACTOR:g} times the latency measured of it.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "latencies",
        False,
        "Print a table of the latency measured of each ensemble size, and with --manifest of its "
        "accuracy and cost per picture.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "batch",
        False,
        "Send all pictures in one request: latencies and budgets are for all together.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "score",
        False,
        "Print how many pictures of a request are right instead of what each is. The name of "
        "a picture's folder is its class, as in digits/3/12.png. Needs --batch and --manifest.",
        flag_values=values,
    )
    app.define_path(
        values,
        "manifest",
        None,
        "hne_manifest.json of the model, or a folder that holds it: names the classes, tells "
        "accuracy and cost, and says how pictures of any size are cropped and resized.",
    )
    app.define_path(
        values,
        "tls_ca",
        None,
        "File with the certificates (PEM) that the server's must be signed by: "
        "the connection is encrypted.",
    )
    app.define_path(
        values,
        "tls_certificate",
        None,
        "PEM file of the client's certificate chain, for a server that asks for one "
        "(hne-serve --tls_client_ca).",
    )
    app.define_path(values, "tls_key", None, "PEM file of that certificate's private key.")
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


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Prints one line per budget and picture; returns the exit code."""
    budgets_ms = _check_flags(values, arguments)
    from hne_tf.exported.manifest import read_manifest

    manifest = read_manifest(values.manifest) if values.manifest else None
    if values.score:
        _labels(arguments, manifest)
    if values.spread:
        return _spread(values, arguments, budgets_ms, manifest)

    with app.quiet_import():
        from hne_tf.client.budget_client import BudgetClient
        from hne_tf.client.messages import ensembles

    with BudgetClient(
        values.server[0],
        values.model,
        manifest=manifest,
        credentials=_credentials(values),
        metadata=_metadata(values.metadata),
        grace_ms=_GRACE_MS,
    ) as client:
        sizes, shape = ensembles(client.learn().signatures, values.model)
        if manifest:
            _check_manifest(manifest, sizes, shape)
        pictures, requests, labels = _read(values, arguments, manifest, shape)
        budget_sizes = _budget_sizes(values.budget_for, sizes)
        batch_size = len(requests[0][0])
        client.measure(requests[0][1])
        latency_ms = client.estimates_ms(batch_size)
        if values.latencies:
            print(_table(latency_ms, batch_size, manifest), flush=True)
        budgets_ms += [round(_BUDGET_FACTOR * latency_ms[size], 2) for size in budget_sizes]
        code = _ask(client, budgets_ms, requests, manifest, labels)
    # Those that could be read have their answers by now.
    pictures.check()
    return code


def _spread(
    values: flags.FlagValues,
    arguments: list[str],
    budgets_ms: Sequence[float],
    manifest: "Manifest | None",
) -> int:
    """Does the same with several servers, each for some leaves."""
    with app.quiet_import():
        from hne_tf.client.spread_client import SpreadClient

    with SpreadClient(
        values.server,
        values.model,
        credentials=_credentials(values),
        metadata=_metadata(values.metadata),
    ) as client:
        plan = client.learn()
        if manifest:
            _check_manifest(manifest, tuple(range(1, plan.leaves + 1)), client.image_shape)
        pictures, requests, labels = _read(values, arguments, manifest, client.image_shape)
        # What a server does the first time only is not in the budget.
        client.predict(requests[0][1], _GRACE_MS)
        code = _ask(client, budgets_ms, requests, manifest, labels)
    pictures.check()
    return code


def _read(
    values: flags.FlagValues,
    arguments: list[str],
    manifest: "Manifest | None",
    shape: tuple[int, int, int],
) -> tuple["Pictures", list[Request], list[int] | None]:
    """Reads the pictures; returns them, as requests too, and with --score the labels of all."""
    from hne_tf.data.pictures import read_all
    from hne_tf.data.pixels import Pixels

    known = Pixels.of_manifest(manifest) if manifest else None
    pictures = read_all(arguments, known or Pixels(*shape), bool(known) or values.resize)
    if not pictures.images:
        pictures.check()
    names, arrays = zip(*pictures.images, strict=True)
    labels = _labels(names, manifest) if values.score else None
    images = np.stack(arrays)
    size = len(images) if values.batch else 1
    starts = range(0, len(images), size)
    requests = [(names[start : start + size], images[start : start + size]) for start in starts]
    return pictures, requests, labels


def _ask(
    client: "BudgetClient | SpreadClient",
    budgets_ms: Sequence[float],
    requests: Sequence[Request],
    manifest: "Manifest | None",
    labels: Sequence[int] | None,
) -> int:
    """Prints what becomes of each request under each budget; returns the exit code."""
    import grpc

    from hne_tf.client.answers import BudgetError

    # Whatever else keeps a request from being answered would keep the others, too.
    refusals = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)
    codes = set()
    for budget_ms in budgets_ms:
        for paths, images in requests:
            try:
                answer = client.predict(images, budget_ms)
            except BudgetError as error:
                if error.code not in refusals:
                    raise
                name = paths[0] if len(paths) == 1 else f"{len(paths)} pictures"
                print(f"hne-predict: {name}: {error}", file=sys.stderr, flush=True)
                codes.add(_EXIT_REFUSED)
                continue
            codes.add(0)
            print("\n".join(_lines(paths, answer, budget_ms, manifest, labels)), flush=True)
    return min(codes, default=0)


def _check_flags(values: flags.FlagValues, pictures: Sequence[str]) -> list[float]:
    """Returns the budgets in milliseconds; raises `InputError` for flags that make no sense."""
    if not values.model:
        raise InputError("--model must name the model, got none")
    if values.spread and (values.budget_for or values.latencies or not values.budget_ms):
        raise InputError(
            "--spread needs --budget_ms, and neither --budget_for nor --latencies, got --budget_ms="
            f"{values.budget_ms}, --budget_for={values.budget_for}, --latencies={values.latencies}"
        )
    if len(values.server) != 1 and not values.spread:
        raise InputError(
            f"--server must be one host:port without --spread, got {','.join(values.server)!r}"
        )
    if values.budget_ms and values.budget_for:
        raise InputError("one of --budget_ms and --budget_for must be given, got both")
    if not (values.budget_ms or values.budget_for or values.latencies):
        raise InputError("--budget_ms, --budget_for or --latencies must be given, got none")
    if values.score and not (values.batch and values.manifest):
        raise InputError(
            "--score needs --batch and --manifest, got "
            f"--batch={values.batch} and --manifest={values.manifest}"
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


def _credentials(values: flags.FlagValues) -> "grpc.ChannelCredentials | None":
    given = {flag: values[flag].value for flag in ("tls_ca", "tls_key", "tls_certificate")}
    if not any(given.values()):
        return None
    if (values.tls_key is None) != (values.tls_certificate is None):
        raise InputError(
            "a client certificate takes both --tls_certificate and --tls_key, got "
            f"--tls_certificate={values.tls_certificate} and --tls_key={values.tls_key}"
        )
    import grpc

    ca, key, certificate = (
        None if path is None else app.pem(flag, path) for flag, path in given.items()
    )
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _metadata(texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [tuple(text.split("=", 1)) for text in texts]
    for text, pair in zip(texts, pairs, strict=True):
        if len(pair) < 2 or not re.fullmatch(r"[a-z0-9_.-]+", pair[0]):
            raise InputError(f"--metadata must be key=value, the key in lower case, got {text!r}")
    return pairs


def _labels(paths: Sequence[str], manifest: "Manifest") -> list[int]:
    """Returns the number of each picture's class, which its folder names."""
    labels = []
    for path in paths:
        folder = pathlib.Path(path).absolute().parent.name
        if folder not in manifest.classes:
            raise InputError(
                "--score needs each picture in a folder named after its class "
                f"({', '.join(manifest.classes)}), got {path!r}"
            )
        labels.append(manifest.classes.index(folder))
    return labels


def _budget_sizes(texts: Sequence[str], sizes: Sequence[int]) -> list[int]:
    """Returns the values of --budget_for."""
    chosen = app.integers("budget_for", texts)
    if not set(chosen) <= set(sizes):
        raise InputError(
            f"--budget_for must name ensemble sizes of the model, {list(sizes)}, got {chosen}"
        )
    return chosen


def _table(latency_ms: Mapping[int, float], batch_size: int, manifest: "Manifest | None") -> str:
    """Returns a row for each ensemble size; what the manifest does not tell has no column."""
    from hne_tf.evaluation.tables import aligned

    request = "ms" if batch_size == 1 else f"ms for {batch_size} pictures"
    columns = {"size": list(map(str, latency_ms))}
    if manifest and manifest.accuracy:
        accuracy = manifest.accuracy.by_size
        columns["accuracy"] = [f"{accuracy[size]:.2%}" for size in latency_ms]
    if manifest and manifest.cost:
        columns["multiply-adds"] = [f"{manifest.cost[size].multiply_adds:,}" for size in latency_ms]
    columns[request] = [f"{ms:.2f}" for ms in latency_ms.values()]
    return aligned(list(columns), list(zip(*columns.values(), strict=True)))


def _lines(
    paths: Sequence[str],
    answer: "Answer | SpreadAnswer",
    budget_ms: float,
    manifest: "Manifest | None",
    labels: Sequence[int] | None,
) -> list[str]:
    """Returns an answer in words, a line for each picture or one for how many are right."""
    late = ", late" if answer.latency_ms > budget_ms else ""
    total = getattr(answer, "total", None)
    whose = f"{answer.size} of {total} leaves" if total else f"ensemble of {answer.size}"
    how = f"{whose}, {answer.latency_ms:.2f} ms of {budget_ms:g} ms{late}"
    best = [_best(probabilities, manifest) for probabilities in answer.probabilities]
    if labels is None:
        return [f"{path}: {each}, {how}" for path, each in zip(paths, best, strict=True)]
    right = int((answer.probabilities.argmax(axis=1) == labels).sum())
    return [f"{right} of {len(paths)} right, {how}"]


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
