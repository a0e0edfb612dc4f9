"""The targets that the sources of a checkout call for."""

import ast
import collections
import posixpath
import sys

from tests.build_files.checkout import FOLDERS, Checkout
from tests.build_files.python_sources import (
    conftests,
    imported_names,
    in_tests,
    is_command,
    is_test,
    module_paths,
)
from tests.build_files.requirements import distribution_of, normalized
from tests.build_files.targets import Target, declared_targets, string_list

RULES = ("py_binary", "py_library", "py_test")


def is_third_party(name: str) -> bool:
    """Whether an imported dotted name is of a distribution."""
    return name.split(".")[0] not in {*FOLDERS, *sys.stdlib_module_names}


def proposed_target(path: str, source: ast.Module) -> Target:
    """A new target for a file that has none, without deps."""
    folder, file = posixpath.split(path)
    stem = file.removesuffix(".py")
    attributes: dict[str, ast.expr] = {
        "name": ast.Constant(posixpath.basename(folder) if stem == "__init__" else stem),
        "srcs": string_list(file),
    }
    if is_test(path):
        attributes["args"] = string_list(f"$(rootpath {file})")
        attributes["data"] = string_list("//:pyproject.toml")
        attributes["main_module"] = ast.Constant("pytest")
        return Target(folder, "py_test", attributes)
    if in_tests(path):
        attributes["testonly"] = ast.Constant(True)
        return Target(folder, "py_library", attributes)
    return Target(folder, "py_binary" if is_command(path, source) else "py_library", attributes)


class SourceGraph:
    """Which target each source of a checkout is in, and which targets it imports."""

    def __init__(self, checkout: Checkout) -> None:
        self._sources = checkout.sources
        self._modules = module_paths(checkout.sources)
        self.targets = [
            target
            for path, build in checkout.builds.items()
            for target in declared_targets(path, build)
        ]
        self.python_targets = [target for target in self.targets if target.rule in RULES]
        self.imports = {
            path: imported_names(path, source, self._modules)
            for path, source in checkout.sources.items()
        }
        self.owners: dict[str, list[Target]] = collections.defaultdict(list)
        for target in self.python_targets:
            for path in target.sources:
                self.owners[path].append(target)

    def deps(self, target: Target) -> set[str]:
        """Absolute labels that a target's sources import."""
        labels = set()
        for path in target.sources:
            for name in self.imports.get(path, ()):
                if name in self._modules:
                    labels.add(self._label(self._modules[name]))
                elif is_third_party(name):
                    labels.add(f"@pypi//{normalized(distribution_of(name))}")
            labels |= {self._label(conftest) for conftest in conftests(path, self._sources)}
        if target.rule == "py_test":
            labels.add("@pypi//pytest")
        return labels - {target.label}

    def _label(self, path: str) -> str:
        """The target of a source, or the one that it should get."""
        owners = self.owners[path] or [proposed_target(path, self._sources[path])]
        return owners[0].label
