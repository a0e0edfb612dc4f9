"""Classes of the user's own go everywhere that ours go, from Python and from the commands."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import hne_tf as hne
from hne_tf.bin import convert_tflite, evaluate, export, train

pytestmark = pytest.mark.slow

HERE = pathlib.Path(__file__).parent


@pytest.fixture(autouse=True)
def in_the_user_s_folder(monkeypatch):
    """Where the user works; commands import from there."""
    monkeypatch.chdir(HERE)


@pytest.fixture(scope="module")
def digits():
    from hne_tf.data import load
    from hne_tf.training.config import default

    config = default().data
    config.train_examples = 320
    return load(config)


def arrays(digits, split):
    images, labels = next(iter(digits.evaluation_batches(split, 2000)))
    return images.numpy(), labels.numpy()


def test_the_config_trains_evaluates_and_exports(run_binary, tmp_path):
    workdir, base = tmp_path / "run", tmp_path / "models/mine"
    code, _, errors = run_binary(train, "--config=my_config.py", f"--workdir={workdir}")
    assert (code, errors) == (0, []), errors
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["loss"] < records[0]["loss"]
    assert 0 < records[-1]["validation_confidence_4"] <= 1
    code, lines, errors = run_binary(evaluate, f"--workdir={workdir}")
    assert code == 0, errors
    assert any(line.startswith("confidence_1 0.") for line in lines)
    measured = json.loads((workdir / "evaluation.json").read_text())
    assert measured["metrics"].keys() == {f"confidence_{size}" for size in (1, 2, 4)}
    code, _, errors = run_binary(export, f"--workdir={workdir}", f"--model_base_path={base}")
    assert code == 0, errors
    accuracy = hne.load(base).manifest.accuracy
    assert accuracy.by_size[4] == measured["sizes"][-1]["accuracy"]
    path = tmp_path / "mine.tflite"
    code, _, errors = run_binary(
        convert_tflite, f"--workdir={workdir}", f"--output={path}", "--mode=int8"
    )
    assert code == 0, errors
    assert hne.load(path).manifest.mode == "int8"


def test_python_trains_saves_exports_and_serves(digits, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    import my_metric
    import my_network
    import my_objective

    x, y = arrays(digits, "train")
    x_test, y_test = arrays(digits, "test")
    network = my_network.SqueezeNet(widths=(8, 12), strides=(1, 2))
    model = hne.TreeEnsemble(network, hne.Tree((2, 2)), digits.spec)
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        my_objective.QuietTrunk(),
        metrics=[hne.metrics.EnsembleAccuracy(), my_metric.Confidence()],
    )
    history = model.fit(x, y, batch_size=32, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    expected = model.evaluate(x_test, y_test, verbose=0, return_dict=True)
    assert {"accuracy_4", "confidence_1"} < expected.keys()
    model.save(tmp_path / "mine.keras")
    model = keras.models.load_model(tmp_path / "mine.keras")
    assert model.architecture == network
    assert model.evaluate(x_test, y_test, verbose=0, return_dict=True) == pytest.approx(
        expected, rel=1e-3
    )
    result = hne.evaluate(model, (x_test, y_test), metrics=[my_metric.Confidence()])
    assert result["metrics"]["confidence_4"] == pytest.approx(expected["confidence_4"], rel=1e-3)

    answers = model.probabilities(x_test[:8])
    hne.export(model, tmp_path / "models/mine", test=(x_test, y_test), report=str)
    np.testing.assert_allclose(
        hne.load(tmp_path / "models/mine").predict(x_test[:8], size=4).probabilities,
        answers,
        atol=1e-4,
    )
    hne.convert_tflite(model, tmp_path / "mine.tflite", report=str)
    np.testing.assert_allclose(
        hne.load(tmp_path / "mine.tflite").predict(x_test[:8], size=4).probabilities,
        answers,
        atol=1e-4,
    )
    with (
        hne.serve(tmp_path / "models/mine", report=str) as server,
        hne.BudgetClient(server.address, "mine") as client,
    ):
        answer = client.predict(x_test[:8], budget_ms=60_000)
    np.testing.assert_allclose(
        answer.probabilities, model.probabilities(x_test[:8], answer.size), atol=1e-4
    )


def test_a_keras_file_is_loaded_where_the_module_has_been_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    import my_network

    network = my_network.SqueezeNet(widths=(4, 4), strides=(1, 1))
    images = hne.ImageSpec((4, 4, 1), ("ant", "bee"), (0.0,), (1.0,))
    path = tmp_path / "mine.keras"
    hne.TreeEnsemble(network, hne.Tree((1, 2)), images).save(path)
    load = f"import hne_tf.models.ensemble, keras; keras.models.load_model({str(path)!r})"
    for imports, message in (("import my_network", ""), ("", "architecture must be registered")):
        done = subprocess.run(
            [sys.executable, "-c", f"{imports}\n{load}"],
            env={"PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
        )
        assert (done.returncode == 0) == (not message), done.stderr
        assert message in done.stderr
