"""README and docs: Python runs as it stands there, and commands have the flags that they name."""

import importlib
import json
import pathlib
import re
import shlex
import shutil
import subprocess

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
def server(folder):
    with hne.serve(folder / "models/digits", rest_port=0, report=str) as server:
        yield server


@pytest.fixture(scope="module")
def address(server):
    return server.address


@pytest.mark.parametrize(("page", "code"), named("python"))
def test_python_runs(page, code, folder, address, monkeypatch, tmp_path):
    # The notebook makes all of its files itself.
    monkeypatch.chdir(tmp_path if page.name == "README.md" else folder)
    code = code.replace("127.0.0.1:8500", address).replace("http_server(9464", "http_server(0")
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


def test_the_notebook_has_25_lines():
    (notebook,) = fenced(PAGES[0], "python")
    assert len([line for line in notebook.splitlines() if line.strip()]) <= 25


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_gets_answers(server, folder):
    blocks = [block for page in PAGES for block in fenced(page, "bash") if "curl " in block]
    assert blocks
    script = "".join(blocks).replace("http://127.0.0.1:8501", server.rest_address)
    # A status that is an error ends the script.
    script = script.replace("curl ", "curl --silent --show-error --fail-with-body ")
    ran = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    answers = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert [next(iter(answer)) for answer in answers] == [
        "model_version_status",
        "model_spec",
        "predictions",
        "outputs",
        "predictions",
        "predictions",
    ]
    assert answers[4]["predictions"][0].keys() == {"probabilities", "size", "latency_ms"}
    assert "x-request-id: a-slow-one" in ran.stdout.lower()


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
