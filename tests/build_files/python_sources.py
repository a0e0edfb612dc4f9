"""What Python files import and are for, from their syntax alone."""

import ast
import pathlib
from collections.abc import Collection, Mapping


def module_paths(paths: Collection[str]) -> dict[str, str]:
    """Dotted names of modules to their paths."""
    return {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in paths
    }


def imported_names(path: str, source: ast.Module, modules: Mapping[str, str]) -> set[str]:
    """Dotted names that a file imports, anywhere in it.

    `from package import name` is `package.name` if that is one of `modules`,
    else `package`. A string that is the full dotted name of a module counts as
    well: it is imported lazily or run with `python -m`. The `__init__` of a
    package is imported only where its own names are: Bazel makes an empty one
    where it is not among the files of a target.
    """
    names = set()
    for node in ast.walk(source):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                package = path.split("/")[: -node.level] if node.level else []
                base = ".".join([*package, *filter(None, [node.module])])
                inner = {f"{base}.{alias.name}" for alias in node.names}
                names |= {name if name in modules else base for name in inner}
            case ast.Constant(value=str(value)) if "." in value and value in modules:
                names.add(value)
    return {name for name in names if modules.get(name) != path}


def in_tests(path: str) -> bool:
    return path.split("/")[0] == "tests"


def is_test(path: str) -> bool:
    """Whether pytest collects the file."""
    return in_tests(path) and pathlib.PurePath(path).name.startswith("test_")


def is_command(path: str, source: ast.Module) -> bool:
    """Whether a file outside the tests is there to be run."""
    # Below `hne_tf`, only `bin` holds commands; elsewhere what can be run is one.
    if path.startswith("hne_tf/") and pathlib.PurePath(path).parent.as_posix() != "hne_tf/bin":
        return False
    return any(isinstance(node, ast.If) and "__main__" in ast.unparse(node) for node in source.body)


def conftests(path: str, sources: Collection[str]) -> set[str]:
    """The `conftest.py` of each folder above, which pytest loads before a test or a conftest."""
    if not (is_test(path) or (in_tests(path) and path.endswith("/conftest.py"))):
        return set()
    above = {f"{folder.as_posix()}/conftest.py" for folder in pathlib.PurePath(path).parents}
    return above.intersection(sources) - {path}
