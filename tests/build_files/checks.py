"""What the BUILD files of a checkout say against what its sources call for."""

import ast
import graphlib
import posixpath
from collections.abc import Iterator

from tests.build_files.advice import addition, load_statement, replacement
from tests.build_files.checkout import Checkout
from tests.build_files.expected import SourceGraph, is_third_party, proposed_target
from tests.build_files.labels import expanded, shortened, sorted_labels
from tests.build_files.python_sources import in_tests, is_test
from tests.build_files.requirements import distribution_of, normalized, pins
from tests.build_files.targets import Target, loaded_rules


def build_file_problems(checkout: Checkout) -> list[str]:
    """What is wrong, each starting with the file that it is about."""
    graph = SourceGraph(checkout)
    return [
        *_coverage(checkout, graph),
        *_missing_files(checkout, graph),
        *_dependencies(graph),
        *_tests(checkout, graph),
        *_loads(checkout, graph),
        *_cycles(graph),
        *_requirements(checkout, graph),
    ]


def _coverage(checkout: Checkout, graph: SourceGraph) -> Iterator[str]:
    """Every source is in one target."""
    for path in checkout.sources:
        owners = graph.owners[path]
        if len(owners) > 1:
            labels = ", ".join(owner.label for owner in owners)
            yield f"{path}: is in the srcs of one target, got {labels}"
        elif not owners:
            yield f"{path}: is in no target; {_added(path, checkout, graph)}"


def _missing_files(checkout: Checkout, graph: SourceGraph) -> Iterator[str]:
    """Every entry of srcs exists."""
    for target in graph.targets:
        for path in target.sources:
            if not (checkout.root / path).is_file():
                yield f"{target.build_file}: srcs of {target.label} must exist, got {path}"


def _dependencies(graph: SourceGraph) -> Iterator[str]:
    """Imports and deps are the same."""
    for target in graph.python_targets:
        needed = graph.deps(target)
        written = target.strings("deps")
        declared = [expanded(dep, target.folder) for dep in written]
        findings = [f"lacks {dep}" for dep in sorted_labels(needed.difference(declared))]
        surplus = sorted_labels(set(declared) - needed)
        findings += [f"imports nothing of {dep}" for dep in surplus]
        findings += [f"names {dep} twice" for dep in set(declared) if declared.count(dep) > 1]
        short = sorted_labels(shortened(dep, target.folder) for dep in needed)
        if not findings and written != short:
            findings = ["has deps that are not sorted, or with a longer label than needed"]
        if findings:
            files = ", ".join(target.sources)
            advice = replacement(target, needed)
            yield f"{files}: {target.label} {', '.join(findings)}; {advice}"


def _tests(checkout: Checkout, graph: SourceGraph) -> Iterator[str]:
    """Every test file is run by pytest in a py_test."""
    for path in filter(is_test, checkout.sources):
        for target in graph.owners[path][:1]:
            if not _runs_pytest_on(target, posixpath.basename(path)):
                yield (
                    f"{path}: {target.label} must be a py_test whose pytest gets the file; "
                    + _added(path, checkout, graph)
                )


def _runs_pytest_on(target: Target, file: str) -> bool:
    """Whether a target is a run of pytest on a file of its folder."""
    match target.attributes.get("main_module"):
        case ast.Constant(value="pytest"):
            return target.rule == "py_test" and f"$(rootpath {file})" in target.strings("args")
    return False


def _loads(checkout: Checkout, graph: SourceGraph) -> Iterator[str]:
    """A BUILD file loads the rules that it uses."""
    for path, build in checkout.builds.items():
        used = {target.rule for target in graph.python_targets if target.build_file == path}
        if used != loaded_rules(build):
            yield f"{path}: must load what it uses; paste:\n\n{load_statement(used)}\n"


def _cycles(graph: SourceGraph) -> Iterator[str]:
    """Bazel takes no cycle of deps, though Python does where an import is in a function."""
    deps = {target.label: graph.deps(target) for target in graph.python_targets}
    try:
        graphlib.TopologicalSorter(deps).prepare()
    except graphlib.CycleError as error:
        cycle = error.args[1]
        first = next(target for target in graph.python_targets if target.label == cycle[0])
        yield f"{first.build_file}: deps must not form a circle, got {' <- '.join(cycle)}"


def _requirements(checkout: Checkout, graph: SourceGraph) -> Iterator[str]:
    """Every imported distribution is pinned."""
    runtime = pins(checkout.root / "requirements.txt")
    development = pins(checkout.root / "requirements-dev.txt")
    for path in checkout.sources:
        file, pinned = "requirements.txt", runtime
        if in_tests(path):
            file, pinned = "requirements-dev.txt", runtime | development
        for name in filter(is_third_party, sorted(graph.imports[path])):
            distribution = distribution_of(name)
            if normalized(distribution) not in pinned:
                yield f"{path}: imports {name}, so {file} must pin {distribution}"


def _added(path: str, checkout: Checkout, graph: SourceGraph) -> str:
    """Tells to add the target that a source should have."""
    target = proposed_target(path, checkout.sources[path])
    return addition(target, graph.deps(target), checkout.builds)
