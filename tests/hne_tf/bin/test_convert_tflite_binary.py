import contextlib
import pathlib

import numpy as np
import pytest

from hne_tf.bin import convert_tflite
from hne_tf.exported.model import load
from hne_tf.training import trained


@pytest.fixture(scope="module")
def converted(trained_workdir, tmp_path_factory):
    """A file in float32, in a folder that the binary made; what it printed lies beside that."""
    folder = tmp_path_factory.mktemp("converted")
    path = folder / "models" / "tiny.tflite"
    flags = [f"--workdir={trained_workdir.path}", f"--output={path}", "--sizes=1,3"]
    flags.append("--stopping_rule=margin")
    with (folder / "output").open("w") as output, contextlib.redirect_stdout(output):
        assert convert_tflite.run(flags) == 0
    return path


def test_flags_reach_the_conversion(converted):
    manifest = load(converted).manifest
    assert manifest.model == "tiny"
    assert manifest.sizes == (1, 3, 4)
    assert manifest.mode == "float32"
    assert manifest.early_stopping.rule == "margin"
    assert [entry.name for entry in converted.parent.iterdir()] == ["tiny.tflite"]


def test_an_anytime_session_runs_the_file(converted, trained_workdir):
    run = trained.restore(trained_workdir)
    images, _ = next(iter(run.data_set.evaluation_batches("test", 8)))
    leaf_logits = run.model(images, training=False).numpy()
    answers = dict(load(converted).session(images))
    assert list(answers) == [1, 2, 3, 4]
    for size, probabilities in answers.items():
        exponentials = np.exp(leaf_logits[:, :size].mean(axis=1))
        expected = exponentials / exponentials.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(probabilities, expected, atol=1e-4)


def test_bytes_and_accuracy_are_printed(converted):
    lines = (converted.parent.parent / "output").read_text().splitlines()
    manifest = load(converted).manifest
    parameter_bytes = 4 * manifest.cost[4].parameters
    size_bytes = converted.stat().st_size
    assert any(
        line.startswith(f"{size_bytes} bytes, {size_bytes / parameter_bytes:.2f} times the ")
        for line in lines
    )
    for size, accuracy in manifest.accuracy.by_size.items():
        assert f"{size} of 4: {accuracy:.4f}" in [line.strip() for line in lines]
    assert lines[-1] == f"written {converted}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["never overwritten", "tiny.tflite"]),
        (["--output=tiny.onnx"], ["must end in .tflite", "tiny.onnx"]),
        (["--output=/proc/version/tiny.tflite"], ["folder", "/proc/version"]),
        (["--output=NEW", "--mode=int4"], ["float32|float16|dynamic_range|int8", "int4"]),
        (["--output=NEW", "--sizes=5"], ["1 to 4", "5"]),
        (["--output=NEW", "--sizes=one"], ["--sizes", "one"]),
        (
            ["--output=NEW", "--mode=int8", "--representative_images=0"],
            ["representative_images", "1 or more", "0"],
        ),
        (["--output=NEW", "--workdir=nowhere"], ["nowhere"]),
        (["--output=NEW", "--pretrained=cifar10_cpu"], ["one of --workdir and --pretrained"]),
        (["--output=NEW", "please"], ["only flags"]),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(
    assert_refused, converted, trained_workdir, tmp_path, arguments, words
):
    before = converted.read_bytes()
    new = tmp_path / "new" / "new.tflite"
    flags = [f"--workdir={trained_workdir.path}", f"--output={converted}"]
    arguments = [argument.replace("NEW", str(new)) for argument in arguments]
    assert_refused(convert_tflite, [*flags, *arguments], *words)
    assert not new.parent.exists()
    assert not pathlib.Path("tiny.onnx").exists()
    assert converted.read_bytes() == before


def test_the_output_is_asked_for(assert_refused, trained_workdir):
    assert_refused(convert_tflite, [f"--workdir={trained_workdir.path}"], "--output")
