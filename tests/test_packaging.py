"""What the package requires, against the pins and the imports."""

import importlib.metadata
import itertools
import json
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import hne_tf

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Modules of the packages that only extras install.
OPTIONAL = (
    "aiohttp",
    "matplotlib",
    "sklearn",
    "tensorboard",
    "tensorflow_datasets",
    "tensorflow_model_optimization",
    "tf_keras",
)
# Everything that loading, predicting, exporting and serving import.
BARE = (
    "hne_tf.bin.predict",
    "hne_tf.bin.serve",
    "hne_tf.client.anytime_client",
    "hne_tf.client.async_client",
    "hne_tf.compression.compressor",
    "hne_tf.evaluation.evaluation",
    "hne_tf.export.exporter",
    "hne_tf.exported.profiling.profile",
    "hne_tf.export.tflite",
    "hne_tf.exported.session",
    "hne_tf.pretrained",
    "hne_tf.report.page",
    "hne_tf.server.service",
    "hne_tf.server.watcher",
    "hne_tf.training.trained",
)


def pins(name):
    """Versions by package in a requirements file."""
    lines = (ROOT / name).read_text().splitlines()
    found = (line.split("==") for line in lines if not line.startswith("-r"))
    return {canonicalize_name(package): version for package, version in found}


def run_bare(code):
    """Runs code in a process without optional packages; returns what it prints, as JSON."""
    hidden = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}))\n"
    done = subprocess.run(
        [sys.executable, "-c", hidden + code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_pins_lie_in_the_ranges_of_the_package_and_its_extras():
    extras = PROJECT["optional-dependencies"].values()
    texts = itertools.chain(PROJECT["dependencies"], *extras)
    ranges = {canonicalize_name(r.name): r.specifier for r in map(Requirement, texts)}
    del ranges["hne-tf"]
    pinned = pins("requirements.txt")
    assert pinned.keys() == ranges.keys()
    for package, version in pinned.items():
        assert version in ranges[package], package


def test_the_lock_has_every_pin():
    lock = pins("requirements_lock.txt")
    for name in ("requirements.txt", "requirements-dev.txt"):
        assert pins(name).items() <= lock.items()


def test_all_is_all_extras():
    extras = PROJECT["optional-dependencies"]
    (everything,) = map(Requirement, extras["all"])
    assert everything.extras == extras.keys() - {"all"}


def test_the_version_is_the_same_everywhere():
    for name, pattern in (
        ("MODULE.bazel", r'^    version = "(.*)",$'),
        ("CITATION.cff", "^version: (.*)$"),
    ):
        assert re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE) == [PROJECT["version"]]


def test_the_package_loads_without_tensorflow():
    code = "import json, hne_tf; hne_tf.__version__; print(json.dumps(sorted(sys.modules)))"
    loaded = run_bare(code)
    assert "hne_tf" in loaded
    assert not {"keras", "numpy", "tensorflow"} & {name.partition(".")[0] for name in loaded}


def test_python_versions_are_the_same_everywhere():
    """pip reads the range first, so that another version is what it names."""
    promised = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert f"3.{sys.version_info.minor}" in promised
    taken = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{minor}" for minor in range(30) if f"3.{minor}" in taken] == promised
    words = f"{', '.join(promised[:-1])} or {promised[-1]}"
    for page in ("README.md", "docs/install.md"):
        assert f"Python {words}" in (ROOT / page).read_text(), page


def test_the_version_is_that_of_the_installed_package(monkeypatch):
    assert re.fullmatch(r"\d+(\.\d+)*|0\+unknown", hne_tf.__version__)

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    assert hne_tf.__version__ == "0+unknown"


def test_loading_exporting_and_serving_import_no_optional_package():
    assert run_bare(
        f"import importlib\nfor name in {BARE}: importlib.import_module(name)\nprint(1)"
    )


def test_help_names_the_extras():
    code = f"""
import contextlib, importlib, io, json
pages = dict()
for name, target in {PROJECT["scripts"]}.items():
    with contextlib.redirect_stdout(io.StringIO()) as page:
        assert importlib.import_module(target.split(":")[0]).run(["--help"]) == 0
    pages[name] = page.getvalue()
assert "tensorflow" not in sys.modules
print(json.dumps(pages))
"""
    extras = {name: re.findall(r"hne_tf\[(.*?)\]", page) for name, page in run_bare(code).items()}
    assert extras == {
        "hne-train": ["train"],
        "hne-evaluate": ["data,report"],
        "hne-export": ["data"],
        "hne-compress": ["compress,data"],
        "hne-convert-tflite": ["data"],
        "hne-profile": ["report"],
        "hne-sweep": ["sweeps"],
        "hne-report": ["data"],
        "hne-serve": ["rest"],
        "hne-predict": [],
        "hne-cut": [],
    }


MISSING = {
    ("hne_tf.bin.train", "--config=configs/digits.py", "--workdir={new}"): "tensorboard",
    ("hne_tf.bin.evaluate", "--workdir={new}"): "matplotlib",
    ("hne_tf.bin.export", "--workdir=tests/artefacts/run", "--model_base_path={new}"): "sklearn",
    ("hne_tf.bin.export", "--pretrained=cifar10_cpu", "--model_base_path={new}"): (
        "tensorflow_datasets"
    ),
    ("hne_tf.bin.serve", "--model_base_path={new}", "--rest_port=0"): "aiohttp",
    ("hne_tf.bin.profile", "--models=1", "--results={new}.md"): "matplotlib",
    ("hne_tf.bin.sweep", "--config=configs/sweeps/objectives_digits.py", "--root={new}"): (
        "matplotlib"
    ),
    (
        "serving.load_test",
        "--model=digits",
        "--manifest=digits.json",
        "--budget_ms=1",
    ): "matplotlib",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Exit code and standard error of each command of `MISSING`, without optional packages."""
    folder = tmp_path_factory.mktemp("bare")
    new = folder / "new"
    commands = [[argument.format(new=new) for argument in command] for command in MISSING]
    code = f"""
import contextlib, importlib, io, json
answers = []
for module, *arguments in {commands}:
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = importlib.import_module(module).run(arguments)
    answers.append((code, errors.getvalue()))
print(json.dumps(answers))
"""
    found = run_bare(code)
    assert not list(folder.iterdir())
    return dict(zip(MISSING, found, strict=True))


@pytest.mark.parametrize("command", MISSING, ids=" ".join)
def test_a_missing_extra_ends_in_one_line_before_the_work(command, answers):
    code, errors = answers[command]
    assert code == 1
    assert re.fullmatch(
        rf"\S+: {MISSING[command]} must be installed for this: pip install 'hne_tf\[\w+\]'\n",
        errors,
    )
