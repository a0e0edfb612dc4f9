"""What BUILD files declare. They are Python syntax and are only parsed, so no Bazel is needed."""

import ast
import dataclasses
import posixpath

from tests.build_files.labels import absolute_label


@dataclasses.dataclass(frozen=True)
class Target:
    """One call of a rule in a BUILD file; `folder` is `""` for the root."""

    folder: str
    rule: str
    attributes: dict[str, ast.expr]

    @property
    def name(self) -> str:
        return ast.literal_eval(self.attributes["name"])

    @property
    def label(self) -> str:
        return absolute_label(self.folder, self.name)

    @property
    def build_file(self) -> str:
        return posixpath.join(self.folder, "BUILD")

    def strings(self, attribute: str) -> list[str]:
        """The strings of a list attribute; a `glob` has none."""
        node = self.attributes.get(attribute)
        return ast.literal_eval(node) if isinstance(node, ast.List) else []

    @property
    def sources(self) -> list[str]:
        """Paths of `srcs` from the root; other targets among them are left out."""
        return [
            posixpath.join(self.folder, source)
            for source in self.strings("srcs")
            if source[0] not in ":/@"
        ]


def string_list(*values: str) -> ast.List:
    """The value of a list attribute."""
    return ast.List([ast.Constant(value) for value in values])


def declared_targets(path: str, build: ast.Module) -> list[Target]:
    """The named targets of a BUILD file."""
    targets = []
    for statement in build.body:
        match statement:
            case ast.Expr(value=ast.Call(func=ast.Name(id=rule), keywords=keywords)):
                attributes = {item.arg: item.value for item in keywords if item.arg}
                if "name" in attributes:
                    targets.append(Target(posixpath.dirname(path), rule, attributes))
    return targets


def loaded_rules(build: ast.Module) -> set[str]:
    """What the `load` statements of a BUILD file name."""
    return {
        ast.literal_eval(name)
        for node in ast.walk(build)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "load"
        for name in node.args[1:]
    }
