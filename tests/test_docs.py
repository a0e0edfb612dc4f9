"""README and docs: Python runs as it stands there, and commands have the flags that they name."""

import importlib
import pathlib
import re
import shlex

import pytest
from absl import flags

import hne_tf as hne

CHECKOUT = pathlib.Path(__file__).parents[1]
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]


def fenced(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def named(language):
    """Every block of a language, with its page and number as the test's name."""
    return [
        pytest.param(page, block, id=f"{page.stem}-{number}")
        for page in PAGES
        # The pages on phones and on extending have tests of their own.
        if page.stem not in ("mobile", "extending")
        for number, block in enumerate(fenced(page, language))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands of the pages have been: models/digits."""
    folder = tmp_path_factory.mktemp("docs")
    resnet = hne.architectures.ResNet("basic", widths=(4, 8, 8), units=(1, 1, 1), strides=(1, 2, 1))
    digits = hne.ImageSpec((8, 8, 1), tuple("0123456789"), mean=(78.0,), std=(96.0,))
    model = hne.TreeEnsemble(resnet, hne.Tree((1, 2, 2)), digits)
    hne.export(model, folder / "models/digits", leaves=[(0, 2), (2, 4)], report=str)
    return folder


@pytest.fixture(scope="module")
def address(folder):
    with hne.serve(folder / "models/digits", report=str) as server:
        yield server.address


@pytest.mark.parametrize(("page", "code"), named("python"))
def test_python_runs(page, code, folder, address, monkeypatch, tmp_path):
    # The notebook makes all of its files itself.
    monkeypatch.chdir(tmp_path if page.name == "README.md" else folder)
    code = code.replace("127.0.0.1:8500", address).replace("http_server(9464", "http_server(0")
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


def test_the_notebook_has_25_lines():
    (notebook,) = fenced(PAGES[0], "python")
    assert len([line for line in notebook.splitlines() if line.strip()]) <= 25


def commands():
    """Commands of the pages that take flags, by page."""
    found = []
    for page in PAGES:
        # Its config is a file of the reader's.
        for block in fenced(page, "bash") if page.stem != "extending" else ():
            for line in block.replace("\\\n", " ").splitlines():
                # A value of several lines is no flag of ours.
                if not line.startswith(("hne-", "python ")):
                    continue
                words = shlex.split(line, comments=True)
                module = module_of(words)
                if module:
                    found.append(pytest.param(*module, id=f"{page.stem}-{' '.join(words[:3])}"))
    return found


def module_of(words):
    """Module and arguments of a command of ours, if it is one."""
    words = [word for word in words if word != "&"]
    if words and words[0].startswith("hne-"):
        return f"hne_tf.bin.{words[0].removeprefix('hne-').replace('-', '_')}", words[1:]
    if words[:2] == ["python", "-m"] and words[2].startswith("serving."):
        return words[2], words[3:]
    if words[:1] == ["python"] and words[1].startswith("benchmarks/"):
        return words[1].removesuffix(".py").replace("/", "."), words[2:]
    return None


@pytest.mark.parametrize(("module", "arguments"), commands())
def test_commands_have_the_flags_that_pages_name(module, arguments):
    values = flags.FlagValues()
    importlib.import_module(module).define_flags(values, list(arguments))
    values(["command", *arguments])


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
