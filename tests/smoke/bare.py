"""Uses an installed hne_tf without extras: load, predict, export, convert, serve, ask.

Runs with the Python that hne_tf is installed in, in an empty working folder. See scripts/smoke.sh.
"""

import contextlib
import importlib.metadata
import importlib.util
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

OPTIONAL = (
    "matplotlib",
    "sklearn",
    "tensorboard",
    "tensorflow_datasets",
    "tensorflow_model_optimization",
    "tf_keras",
)
COMMANDS = pathlib.Path(sys.executable).parent
TOLERANCE = 1e-4


def check_installation() -> None:
    """The package is the installed one, and no optional package is there."""
    import hne_tf

    assert pathlib.Path(hne_tf.__file__).is_relative_to(sys.prefix), hne_tf.__file__
    assert hne_tf.__version__ == importlib.metadata.version("hne_tf")
    found = [name for name in OPTIONAL if importlib.util.find_spec(name)]
    assert not found, f"the bare package must not install {found}"


def check_commands() -> None:
    """Every command shows its help; one whose extra is missing says so in one line."""
    scripts = importlib.metadata.distribution("hne_tf").entry_points
    assert len(scripts) >= 10
    for script in scripts:
        shown = subprocess.run([COMMANDS / script.name, "--help"], capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
        assert "Flags:" in shown.stdout
    refused = subprocess.run(
        [COMMANDS / "hne-evaluate", "--workdir=run"], capture_output=True, text=True
    )
    assert refused.returncode == 1, refused
    assert re.fullmatch(r"hne-evaluate: .*pip install 'hne_tf\[report\]'\n", refused.stderr)


@contextlib.contextmanager
def serving(base: pathlib.Path) -> Iterator[str]:
    """Serves a model's folder with hne-serve; gives the address."""
    command = [COMMANDS / "hne-serve", f"--model_base_path={base}", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = next((line for line in server.stdout if "address=" in line), None)
            assert line, "hne-serve ended before it served"
            yield line.split("address=")[1].strip()
        finally:
            server.terminate()
            server.communicate()
    assert server.returncode == 0, server.returncode


def check_model() -> None:
    """A pretrained model answers alike in process, as a file and from a server."""
    import numpy as np
    from PIL import Image
    from scipy import special

    import hne_tf

    model = hne_tf.from_pretrained("cifar10_cpu")
    images = np.random.default_rng(0).integers(0, 256, (4, *model.images.shape), np.uint8)
    leaf_logits = model(images, training=False).numpy()
    expected = special.softmax(leaf_logits.mean(axis=1), axis=-1)

    version = hne_tf.export(model, "models/cifar10_cpu")
    hne_tf.convert_tflite(model, "models/cifar10_cpu.tflite")
    for path in (version, "models/cifar10_cpu.tflite"):
        answer = hne_tf.load(path).predict(images)
        np.testing.assert_allclose(answer.probabilities, expected, atol=TOLERANCE)
        print(f"{path} answers as the live model does")

    Image.fromarray(images[0]).save("picture.png")
    with serving(version.parent) as address:
        with hne_tf.BudgetClient(address, "cifar10_cpu") as client:
            client.measure(images)
            answer = client.predict(images, budget_ms=60_000)
        assert answer.size == model.tree.leaves, answer
        np.testing.assert_allclose(answer.probabilities, expected, atol=TOLERANCE)
        arguments = [f"--server={address}", "--model=cifar10_cpu", "--budget_ms=60000"]
        subprocess.run([COMMANDS / "hne-predict", *arguments, "picture.png"], check=True)
    print("hne-serve answers as the live model does")


def check_own_model() -> None:
    """The notebook of docs/your-model.md: a Keras model becomes a tree and answers in time."""
    page = pathlib.Path(__file__).parents[2] / "docs/your-model.md"
    (notebook,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len([line for line in notebook.splitlines() if line.strip()]) <= 15
    exec(compile(notebook, str(page), "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    check_installation()
    check_commands()
    check_model()
    check_own_model()
