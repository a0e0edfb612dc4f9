"""Evaluations and profiles as tables."""

import statistics
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from hne_tf.errors import InputError
from hne_tf.exported.measurements import relative_time

if typing.TYPE_CHECKING:
    from hne_tf.exported.measurements import Cost
    from hne_tf.exported.profiling.profile import ProfiledModel

_COLUMNS = {
    "size": "{:d}",
    "accuracy": "{:.2%}",
    "balanced_accuracy": "{:.2%}",
    "nll": "{:.4f}",
    "ece": "{:.4f}",
    "brier": "{:.4f}",
    "disagreement": "{:.4f}",
    "variance": "{:.4f}",
    "lost": "{:.2%}",
    "gain": "{:+.2%}",
    "multiply_adds": "{:,d}",
    "parameters": "{:,d}",
}

# Ways in which networks with exits answer, by average.
EXIT_ANSWERS = {
    "last": "Each exit alone",
    "logits": "Running ensemble of the exits",
    "probabilities": "Running ensemble of the exits' probabilities",
    "sum": "Sum of the exits",
}

_STOPPING_COLUMNS = {
    "target_multiply_adds": "{:,d}",
    "multiply_adds": "{:,d}",
    "mean_size": "{:.2f}",
    "accuracy": "{:.2%}",
    "anytime_accuracy": "{:.2%}",
}


# Of more classes than these, the worst are shown.
_SHOWN_CLASSES = 20


def markdown(evaluation: dict[str, Any]) -> str:
    """A Markdown table with a row per ensemble size, and the leaves' accuracy below.

    A further table is of classes; others, if the evaluation has them, are of the other way
    in which exits answer; of early stopping, a row per target cost; and of corrupted images.
    """
    leaves = " ".join(f"{accuracy:.2%}" for accuracy in evaluation["leaf_accuracy"])
    lines = [
        _formatted(_COLUMNS, evaluation["sizes"]),
        "",
        f"{evaluation['split']} split, {evaluation['examples']} examples{_skipped(evaluation)}, "
        f"weights of step {evaluation['step']} of {evaluation['total_steps']}.",
        f"Accuracy of each leaf: {leaves} (mean {evaluation['mean_leaf_accuracy']:.2%}).",
        "disagreement, variance: between the leaves; lost: right of some smaller size, and wrong "
        "here; gain: over the mean accuracy of the leaves that answer.",
    ]
    if own := evaluation.get("metrics"):
        lines.append(f"{', '.join(f'{name} {value:.4g}' for name, value in own.items())}.")
    for average, rows in evaluation.get("sizes_by_average", {}).items():
        if rows != evaluation["sizes"]:
            lines += ["", f"{EXIT_ANSWERS[average]}:", "", _formatted(_COLUMNS, rows)]
    stopping = evaluation.get("early_stopping")
    if stopping and stopping["curve"]:
        lines += [
            "",
            "Early stopping, each image at the first size that is sure enough of it:",
            "",
            _formatted(_STOPPING_COLUMNS, stopping["curve"]),
            "",
            f"Thresholds fitted to each target on {stopping['examples']} {stopping['split']} "
            f"examples, judged on the {evaluation['split']} split; means per image.",
            "anytime_accuracy: of stopping all images at one size, for the same multiply_adds.",
        ]
    if by_rule := evaluation.get("early_stopping_by_rule"):
        lines += _rules_markdown(by_rule)
    if calibration := evaluation.get("calibration"):
        lines += _calibration_markdown(calibration)
    if others := evaluation.get("out_of_distribution"):
        found = " ".join(f"{size}: {area:.4f}" for size, area in others["auroc"].items())
        lines += [
            "",
            f"Told from {others['examples']} images of {others['data_set']} by the highest "
            f"probability, area under the ROC curve by size: {found}.",
        ]
    lines += ["", *_classes_markdown(evaluation["classes"])]
    if corruptions := evaluation.get("corruptions"):
        lines += ["", *_corruptions_markdown(corruptions)]
    return "\n".join(lines)


def costs(by_size: Mapping[int, "Cost"]) -> str:
    """A row for each ensemble size."""
    first = by_size[1].multiply_adds
    rows = [
        (
            str(size),
            f"{each.multiply_adds:,}",
            f"{each.parameters:,}",
            f"{each.multiply_adds / first:.2f}",
        )
        for size, each in by_size.items()
    ]
    return aligned(("leaves", "multiply-adds", "parameters", "multiply-adds / one leaf"), rows)


def costs_of_blocks(nodes: Sequence[Sequence["Cost"]]) -> str:
    """A row for each block, with the nodes that it has."""
    rows = [
        (
            str(block),
            str(len(row)),
            f"{sum(each.multiply_adds for each in row):,}",
            f"{sum(each.parameters for each in row):,}",
        )
        for block, row in enumerate(nodes)
    ]
    return aligned(("block", "nodes", "multiply-adds", "parameters"), rows)


def _rules_markdown(by_rule: Mapping[str, Any]) -> list[str]:
    """Lines on the accuracy of each stopping rule within each mean cost."""
    accuracies = {
        rule: {row["target_multiply_adds"]: row["accuracy"] for row in stopping["curve"]}
        for rule, stopping in by_rule.items()
    }
    targets = sorted({target for row in accuracies.values() for target in row})
    if not targets:
        return []
    cells = [
        [f"{target:,d}", *(_share(row.get(target)) for row in accuracies.values())]
        for target in targets
    ]
    return [
        "",
        "Accuracy by stopping rule, within each mean cost:",
        "",
        aligned(["target_multiply_adds", *accuracies], cells),
    ]


def _calibration_markdown(calibration: Mapping[str, Any]) -> list[str]:
    """Lines on each size before and after its temperature, and on prediction sets."""
    names = ("ece", "adaptive_ece", "nll", "brier")
    header = ["size", "temperature", *(f"{name} -> after" for name in names)]
    header += ["surest half", "area of risk", *(f"{each} sets" for each in calibration["limits"])]
    cells = [
        [
            str(row["size"]),
            f"{row['temperature']:.3f}",
            *(f"{row['before'][name]:.4f} -> {row['after'][name]:.4f}" for name in names),
            f"{row['selective']['0.5']:.2%}",
            f"{row['selective']['area']:.4f}",
            *(f"{each['coverage']:.2%} of {each['size']:.2f}" for each in row["sets"].values()),
        ]
        for row in calibration["sizes"]
    ]
    return [
        "",
        "Calibration, before -> after a temperature for each size:",
        "",
        aligned(header, cells),
        "",
        f"Temperatures and sets fitted on {calibration['examples']} {calibration['split']} "
        "examples. surest half: accuracy on it; area of risk: mean error over all parts of surest "
        "images.",
        f"sets: how many hold the label, where {calibration['coverage']:.0%} was asked for, and "
        "their mean number of classes.",
    ]


def _classes_markdown(classes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines on the accuracy of every size on each class, the worst classes if they are many."""
    sizes = list(classes[0]["accuracy"])
    occurring = [row for row in classes if row["examples"]]
    shown = occurring
    if len(occurring) > _SHOWN_CLASSES:
        worst = sorted(occurring, key=lambda row: row["accuracy"][sizes[-1]])[:_SHOWN_CLASSES]
        shown = [row for row in occurring if any(row is each for each in worst)]
    cells = [
        [
            # What would end a cell.
            row["name"].replace("|", "\\|"),
            f"{row['examples']:,}",
            *(f"{row['accuracy'][size]:.2%}" for size in sizes),
            _share(row["precision"][sizes[-1]]),
        ]
        for row in shown
    ]
    which = (
        "Each class" if len(shown) == len(classes) else f"{len(shown)} of {len(classes)} classes"
    )
    if len(shown) < len(occurring):
        which += f", those of the lowest accuracy of size {sizes[-1]}"
    return [
        aligned(["class", "examples", *sizes, "precision"], cells, words={"class"}),
        "",
        f"{which}: the share of its examples that each size answers right, and of the answers of "
        f"size {sizes[-1]} that name it, the share that is right.",
        "balanced_accuracy: the mean over the classes.",
    ]


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _corruptions_markdown(corruptions: Mapping[str, Any]) -> list[str]:
    """Lines on accuracy by corruption and size, see `robustness.evaluate`."""
    sizes = list(corruptions["mean"])
    by_name = {
        name: {size: statistics.fmean(row[size] for row in rows.values()) for size in sizes}
        for name, rows in corruptions["accuracy"].items()
    }
    cells = [
        [name, *(f"{accuracy[size]:.2%}" for size in sizes)]
        for name, accuracy in {**by_name, "mean": corruptions["mean"]}.items()
    ]
    severities = ", ".join(map(str, corruptions["severities"]))
    return [
        aligned(["corruption", *sizes], cells, words={"corruption"}),
        "",
        f"Accuracy of each ensemble size on {corruptions['examples']} corrupted test images, mean "
        f"over the severities {severities}.",
    ]


def _skipped(evaluation: dict[str, Any]) -> str:
    """What to say of corrupt images, which evaluations of old know nothing of."""
    count = evaluation.get("skipped", 0)
    return f" ({count} corrupt ones skipped)" if count else ""


def aligned(
    header: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[str] = ()
) -> str:
    """A Markdown table whose columns are aligned in the source too.

    Args:
      header: a name per column.
      rows: a cell per column.
      words: names of the columns that hold words, which go to the left. The others hold
        numbers.
    """
    left = [name in words for name in header]
    widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = [
        f":{'-' * (width - 1)}" if to_left else f"{'-' * (width - 1)}:"
        for to_left, width in zip(left, widths, strict=True)
    ]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, to_left, width in zip(row, left, widths, strict=True)
        )
        + " |"
        for row in (header, rule, *rows)
    )


def _formatted(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of some columns of the rows, each in its own format."""
    cells = [[form.format(row[key]) for key, form in columns.items()] for row in rows]
    return aligned(list(columns), cells)


def profiles_markdown(
    profiles: Sequence["ProfiledModel"], threads: Sequence[int], batch_sizes: Sequence[int]
) -> str:
    """Two Markdown tables: storage per model, and accuracy and latency per ensemble size.

    Args:
      profiles: see `exported.profile.profile`.
      threads: numbers of threads with columns of their own.
      batch_sizes: a row each.
    """
    reference = next((each for each in profiles if each.mode == "float32"), None)
    storage = [
        [
            each.name,
            each.mode,
            *(
                cell
                for kind in ("bytes", "gzip_bytes")
                for cell in (f"{_storage(each, kind):,}", _ratio(each, reference, kind))
            ),
        ]
        for each in profiles
    ]
    latency = [
        [
            each.name,
            each.mode,
            str(size),
            f"{each.accuracy[size]:.2%}" if each.accuracy else "-",
            str(batch_size),
            {True: "on", False: "off", None: "-"}[onednn],
            "1 thread" if side_by_side else "all",
            *(
                cell
                for count in threads
                for cell in _latency_cells(each, size, batch_size, count, onednn, side_by_side)
            ),
        ]
        for profiled in profiles
        for each in (profiled, profiled.litert)
        if each is not None
        for batch_size in batch_sizes
        for size in each.manifest.sizes
        for onednn in each.onednn
        for side_by_side in each.side_by_side
        if not side_by_side or each.model.default_threads in threads
    ]
    columns = [f"{threads_text(count)} {key}" for count in threads for key in ("p50", "p95")]
    header = ["model", "mode", "bytes", "of float32", "gzip bytes", "of float32"]
    lines = [
        aligned(header, storage, words={"model", "mode"}),
        "",
        "Graph and weights, without the manifest."
        + (f" float32 is {reference.name}." if reference else ""),
        "",
        aligned(
            ["model", "mode", "size", "accuracy", "batch", "oneDNN", "operation", *columns],
            latency,
            words={"model", "mode", "oneDNN", "operation"},
        ),
        "",
        "Milliseconds per call, warm; models, sizes and settings took turns.",
        *(line for each in profiles for line in _faster(each)),
    ]
    return "\n".join(lines)


def _latency_cells(profiled: "ProfiledModel", *setting: Any) -> list[str]:
    """Median and 95th percentile; dashes for threads that did not run side by side."""
    try:
        row = profiled.latency(*setting)
    except InputError:
        if not setting[-1]:
            raise
        return ["-", "-"]
    return [f"{row.p50_ms:.2f}", f"{row.p95_ms:.2f}"]


def _faster(profiled: "ProfiledModel") -> Iterator[str]:
    """A sentence per setting that was chosen."""
    measured, litert = profiled.manifest.latency, profiled.manifest.litert
    if measured and measured.onednn is not None:
        onednn = "with" if measured.onednn else "without"
        operation = " and with one thread for each operation" if measured.side_by_side else ""
        yield f"{profiled.name} is faster {onednn} oneDNN{operation}."
    if measured and litert:
        ratio = relative_time(litert.measurements, measured.measurements)
        yield (
            f"LiteRT computes {profiled.name} best by {threads_text(litert.threads)} a call: "
            f"{ratio:.2f} times what TensorFlow takes."
        )


def _storage(profile: "ProfiledModel", kind: str) -> int:
    return getattr(profile.manifest.storage, kind)


def _ratio(profile: "ProfiledModel", reference: "ProfiledModel | None", kind: str) -> str:
    """How a model's storage compares with that of the first float32 file."""
    if reference is None:
        return "-"
    return f"{_storage(profile, kind) / _storage(reference, kind):.2f}"


def threads_text(count: int) -> str:
    """A number of threads in words."""
    return "1 thread" if count == 1 else f"{count} threads"
