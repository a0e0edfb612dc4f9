"""Labels of Bazel targets, absolute and as a BUILD file writes them."""

from collections.abc import Iterable


def absolute_label(folder: str, name: str) -> str:
    """The label of a target; a target named like its folder is the folder's."""
    return f"//{folder}" if name == folder.rpartition("/")[2] else f"//{folder}:{name}"


def shortened(label: str, folder: str) -> str:
    """An absolute label as it is written in a folder's BUILD file."""
    if label == f"//{folder}":
        return f":{folder.rpartition('/')[2]}"
    return label.removeprefix(f"//{folder}") if label.startswith(f"//{folder}:") else label


def expanded(label: str, folder: str) -> str:
    """The absolute label of one written in a folder's BUILD file."""
    if label.startswith("@"):
        return label
    where, colon, name = label.partition(":")
    if not where.startswith("//"):
        return absolute_label(folder, name if colon else where)
    return absolute_label(where[2:], name) if colon else label


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """Labels in buildifier's order: of this folder, of other folders, of distributions."""

    def key(label: str) -> tuple[int, list[str]]:
        group = 2 if label.startswith("@") else label.startswith("//")
        return group, label.replace(":", ".").split(".")

    return sorted(labels, key=key)
