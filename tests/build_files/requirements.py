"""The distributions that requirements files pin, and those that imports need."""

import pathlib
import re

# Import names, dotted where a distribution shares its first part with others,
# that are not the name of their distribution.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "google.protobuf": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "sklearn": "scikit-learn",
    "tensorflow_serving": "tensorflow-serving-api",
    "yaml": "pyyaml",
}


def pins(path: pathlib.Path) -> dict[str, str]:
    """Distributions of a requirements file, and of those that it includes, to what follows."""
    found = {}
    for line in path.read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r"):
            found |= pins(path.parent / line[2:].strip())
        elif line:
            distribution = re.split(r"[^\w.-]", line)[0]
            found[normalized(distribution)] = line.removeprefix(distribution)
    return found


def normalized(distribution: str) -> str:
    """The name under which the pip extension offers a distribution."""
    return re.sub(r"[-_.]+", "_", distribution).lower()


def distribution_of(name: str) -> str:
    """The distribution of an imported dotted name."""
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next(
        (DISTRIBUTIONS[prefix] for prefix in prefixes if prefix in DISTRIBUTIONS),
        parts[0].replace("_", "-"),
    )
