"""Text to paste into BUILD files, formatted as buildifier does."""

import ast
import json
from collections.abc import Collection

from tests.build_files.labels import shortened, sorted_labels
from tests.build_files.python_sources import in_tests
from tests.build_files.targets import Target, string_list

# The order in which buildifier puts attributes; others follow, sorted, and deps are last.
FIRST_ATTRIBUTES = ("name", "size", "timeout", "testonly", "srcs")


def replacement(target: Target, deps: Collection[str]) -> str:
    """Tells to correct a declared target to these absolute labels as deps."""
    return f"replace it in {target.build_file}:\n\n{target_text(target, deps)}\n"


def addition(target: Target, deps: Collection[str], build_files: Collection[str]) -> str:
    """Tells to add a target, and all that its BUILD file needs if that does not exist."""
    text = target_text(target, deps)
    if target.build_file not in build_files:
        visibility = "//tests:__subpackages__" if in_tests(target.folder) else "//visibility:public"
        package = f'package(default_visibility = ["{visibility}"])'
        text = f"{load_statement({target.rule})}\n\n{package}\n\n{text}"
    return f"add to {target.build_file}:\n\n{text}\n"


def load_statement(rules: Collection[str]) -> str:
    names = ", ".join(f'"{rule}"' for rule in sorted(rules))
    return f'load("@rules_python//python:defs.bzl", {names})'


def target_text(target: Target, deps: Collection[str]) -> str:
    """A target with these absolute labels in place of the deps that it has."""
    attributes = {name: node for name, node in target.attributes.items() if name != "deps"}
    order = [name for name in FIRST_ATTRIBUTES if name in attributes]
    order += sorted(attributes.keys() - order)
    if deps:
        near = sorted_labels(shortened(dep, target.folder) for dep in deps)
        attributes["deps"] = string_list(*near)
        order.append("deps")
    lines = [f"    {name} = {_value_text(attributes[name])}," for name in order]
    return "\n".join([f"{target.rule}(", *lines, ")"])


def _value_text(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str()):
            return json.dumps(node.value, ensure_ascii=False)
        case ast.List(elts=[_, _, *_]):
            return (
                "[\n" + "".join(f"        {_value_text(item)},\n" for item in node.elts) + "    ]"
            )
        case ast.List():
            return f"[{''.join(map(_value_text, node.elts))}]"
        case ast.Call(func=ast.Name()):
            values = [ast.unparse(value) for value in node.args]
            values += [f"{item.arg} = {ast.unparse(item.value)}" for item in node.keywords]
            return f"{node.func.id}({', '.join(values)})".replace("'", '"')
    return ast.unparse(node).replace("'", '"')
