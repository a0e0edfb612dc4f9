"""MODULE.bazel against pyproject.toml and the requirements."""

import ast
import pathlib
import tomllib
from collections.abc import Iterator

from tests.build_files.requirements import pins


def module_problems(root: pathlib.Path) -> Iterator[str]:
    """MODULE.bazel says what pyproject.toml says, and reads requirements that exist."""
    calls = _calls(root / "MODULE.bazel")
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    for key in ("name", "version"):
        if calls["module"][key] != project[key]:
            yield f"MODULE.bazel: {key} must be {project[key]!r}, got {calls['module'][key]!r}"
    oldest = project["requires-python"].removeprefix(">=")
    for call in ("python.toolchain", "pip.parse"):
        if (version := calls[call]["python_version"]) != oldest:
            yield f"MODULE.bazel: python_version of {call} must be {oldest!r}, got {version!r}"
    lock = str(calls["pip.parse"]["requirements_lock"]).removeprefix("//:")
    if not (root / lock).is_file():
        yield f"MODULE.bazel: requirements_lock must be a file, got {lock!r}"
        return
    locked = pins(root / lock)
    for distribution, version in pins(root / "requirements.txt").items():
        if locked.get(distribution) != version:
            yield f"{lock}: must pin {distribution}{version}, got {locked.get(distribution)}"


def _calls(path: pathlib.Path) -> dict[str, dict[str, object]]:
    """Names of called functions to the keyword arguments of their first call."""
    calls: dict[str, dict[str, object]] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            values = {item.arg: ast.literal_eval(item.value) for item in node.keywords}
            calls.setdefault(ast.unparse(node.func), values)
    return calls
