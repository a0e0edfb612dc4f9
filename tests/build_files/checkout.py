"""The files of a checkout that are compared with each other."""

import ast
import dataclasses
import pathlib
from collections.abc import Iterable

# Resolved, because under Bazel this file is a link into the checkout.
ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("hne_tf", "serving", "configs", "benchmarks", "tests")


@dataclasses.dataclass(frozen=True)
class Checkout:
    """Sources and BUILD files below a folder, parsed; keys are paths from there, sorted."""

    root: pathlib.Path
    sources: dict[str, ast.Module]
    builds: dict[str, ast.Module]

    @classmethod
    def read(cls, root: pathlib.Path) -> "Checkout":
        def parsed(paths: Iterable[pathlib.Path]) -> dict[str, ast.Module]:
            found = {path.relative_to(root).as_posix(): path.read_text() for path in paths}
            return {path: ast.parse(found[path], path) for path in sorted(found)}

        folders = [root / folder for folder in FOLDERS]
        sources = [path for folder in folders for path in folder.rglob("*.py")]
        builds = [path for folder in folders for path in folder.rglob("BUILD")]
        return cls(
            root,
            parsed(sources),
            parsed(path for path in [root / "BUILD", *builds] if path.is_file()),
        )
