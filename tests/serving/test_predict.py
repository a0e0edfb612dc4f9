"""The `hne-predict` binary, run in this process against a real server."""

import dataclasses
import json
import re

import grpc
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from hne_tf.bin import predict
from hne_tf.client.answers import BudgetError
from hne_tf.client.budget_client import BudgetClient
from hne_tf.client.latency.latencies import Latencies
from hne_tf.client.metadata import MetadataSource
from hne_tf.data.pixels import Pixels
from hne_tf.exported.interface import ModelInput
from hne_tf.exported.measurements import Accuracy, Cost
from hne_tf.server.servable import Servable
from hne_tf.server.service import start

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture
def picture(tmp_path, images):
    path = tmp_path / "digit.png"
    Image.fromarray(images[0, ..., 0]).save(path)
    return path


@pytest.fixture
def ask(server, capsys):
    """Runs the binary; returns exit code and the lines it printed and complained."""

    def run(*arguments, model="digits", target=server.address):
        code = predict.run([f"--server={target}", f"--model={model}", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err.splitlines()

    return run


@pytest.fixture
def estimates(monkeypatch):
    """Makes the measured latencies what a test says, whatever this machine is busy with."""

    def give(milliseconds):
        monkeypatch.setattr(BudgetClient, "measure", lambda self, images: None)
        made = Latencies.__init__
        monkeypatch.setattr(
            Latencies, "__init__", lambda self, prior: made(self, {1: milliseconds})
        )

    return give


@pytest.fixture
def requests_sent(monkeypatch):
    """Budget and number of images of each request that asks for an answer."""
    sent = []
    predict = BudgetClient.predict

    def noted(client, images, budget_ms):
        sent.append((budget_ms, len(images)))
        return predict(client, images, budget_ms)

    monkeypatch.setattr(BudgetClient, "predict", noted)
    return sent


@pytest.fixture
def fail_below(monkeypatch):
    """Lets budgets of fewer milliseconds end in an error, and leaves the others alone."""
    predict = BudgetClient.predict

    def give(milliseconds, code):
        def failing(client, images, budget_ms):
            if budget_ms < milliseconds:
                raise BudgetError(f"no answer within {budget_ms:g} ms", (), code)
            return predict(client, images, budget_ms)

        monkeypatch.setattr(BudgetClient, "predict", failing)

    return give


@pytest.fixture
def class_folders(tmp_path, images, saved_model):
    """A picture of each image in the folder of the class that four networks give it."""
    probabilities = saved_model.signatures["ensemble_4"](images=images)["probabilities"]
    paths = []
    for number, best in enumerate(probabilities.numpy().argmax(axis=1)):
        paths.append(tmp_path / "test" / CLASSES[best] / f"{number}.png")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number, ..., 0]).save(paths[-1])
    return paths


def _expected(saved_model, images, signature):
    probabilities = saved_model.signatures[signature](images=images)["probabilities"].numpy()[0]
    return int(probabilities.argmax()), probabilities.max()


def test_answers_with_the_whole_ensemble_when_time_allows(ask, picture, saved_model, images):
    code, printed, complained = ask("--budget_ms=60000", picture)
    assert (code, complained) == (0, [])
    best, probability = _expected(saved_model, images[:1], "ensemble_4")
    assert len(printed) == 1
    assert re.fullmatch(
        rf"{re.escape(str(picture))}: class {best} \({probability:.3f}\), ensemble of 4, "
        r"\d+\.\d\d ms of 60000 ms",
        printed[0],
    )


def test_the_manifest_names_the_class(ask, picture, manifest_path, saved_model, images):
    arguments = ("--budget_ms=60000", f"--manifest={manifest_path}", picture)
    best, probability = _expected(saved_model, images[:1], "ensemble_4")
    code, printed, complained = ask(*arguments)
    assert (code, complained) == (0, [])
    assert f"{CLASSES[best]} ({probability:.3f}), ensemble of 4, " in printed[0]


def test_a_late_answer_is_reported_not_cut_off(ask, picture, estimates):
    estimates({1: 1e-6, 2: 1e-6, 4: 1e-6})
    code, printed, _ = ask("--budget_ms=0.001", picture)
    assert code == 0
    assert printed[0].endswith(" ms of 0.001 ms, late")


def test_every_picture_gets_its_line(ask, picture, tmp_path):
    other = tmp_path / "other.png"
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(other)
    code, printed, _ = ask("--budget_ms=60000", picture, other)
    assert code == 0
    assert [line.split(":")[0] for line in printed] == [str(picture), str(other)]


def test_several_budgets_are_answered_in_turn(ask, picture, estimates):
    # Far apart, so that the answers' own times do not change the choices.
    estimates({1: 1.0, 2: 2e4, 4: 1e9})
    code, printed, _ = ask("--budget_ms=1000,5e6,1e11", picture)
    assert code == 0
    sizes = [re.search(r"ensemble of (\d)", line)[1] for line in printed]
    assert sizes == ["1", "2", "4"]


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"])
def test_a_refused_budget_gets_a_line_and_the_others_are_tried(ask, picture, fail_below, code):
    fail_below(1000, grpc.StatusCode[code])
    code, printed, complained = ask("--budget_ms=2,60000,5,70000", picture)
    assert code == 0
    assert [re.search(r"of (\d+) ms$", line)[1] for line in printed] == ["60000", "70000"]
    assert complained == [
        f"hne-predict: {picture}: no answer within 2 ms",
        f"hne-predict: {picture}: no answer within 5 ms",
    ]


def test_the_exit_code_tells_that_all_budgets_were_refused(ask, picture, fail_below):
    fail_below(1000, grpc.StatusCode.RESOURCE_EXHAUSTED)
    code, printed, complained = ask("--budget_ms=2,5", picture)
    assert (code, printed, len(complained)) == (3, [], 2)


def test_a_failure_that_no_budget_explains_ends_the_run(ask, picture, fail_below):
    fail_below(1000, grpc.StatusCode.UNAVAILABLE)
    code, printed, complained = ask("--budget_ms=60000,2,60000", picture)
    assert (code, len(printed)) == (1, 1)
    assert complained == ["hne-predict: no answer within 2 ms"]


@pytest.mark.parametrize(("size", "budget_ms"), [(1, "2.6"), (4, "2.6e+09")])
def test_a_budget_for_a_size_is_by_its_latency(ask, picture, estimates, size, budget_ms):
    estimates({1: 2.0, 2: 2e4, 4: 2e9})
    code, printed, _ = ask(f"--budget_for={size}", picture)
    assert code == 0
    assert f", ensemble of {size}, " in printed[0]
    assert f" ms of {budget_ms} ms" in printed[0]


def test_a_budget_is_for_sizes_of_the_model(ask, picture):
    _check_refused(ask("--budget_for=1,3", picture), "[1, 2, 4], got [1, 3]")


def test_a_budget_is_given_in_one_way(ask, picture):
    _check_refused(ask("--budget_for=1", "--budget_ms=5", picture), "got both")


def test_a_batch_is_one_request(ask, class_folders, requests_sent, saved_model, images):
    code, printed, complained = ask("--budget_ms=60000", "--batch", *class_folders)
    assert (code, complained) == (0, [])
    assert requests_sent == [(60000, 5)]
    probabilities = saved_model.signatures["ensemble_4"](images=images)["probabilities"].numpy()
    how = {line.split("), ")[1] for line in printed}
    assert len(how) == 1
    assert [line.split("), ")[0] for line in printed] == [
        f"{path}: class {each.argmax()} ({each.max():.3f}"
        for path, each in zip(class_folders, probabilities, strict=True)
    ]


def test_latencies_and_budgets_of_a_batch_are_of_all_pictures(ask, class_folders, monkeypatch):
    measured = []
    monkeypatch.setattr(BudgetClient, "measure", lambda self, images: measured.append(len(images)))
    known = {1: {1: 2.0}, 5: {1: 8.0, 2: 9.0, 4: 10.0}}
    monkeypatch.setattr(BudgetClient, "estimates_ms", lambda self, batch_size=1: known[batch_size])
    code, printed, _ = ask("--budget_for=1", "--latencies", "--batch", *class_folders)
    assert (code, measured) == (0, [5])
    assert printed[0] == "| size | ms for 5 pictures |"
    assert printed[2].split()[3] == "8.00"
    assert " ms of 10.4 ms" in printed[5]


def test_a_score_counts_the_right_answers(ask, class_folders, manifest_path, tmp_path):
    path = class_folders[0]
    wrong = tmp_path / "test" / CLASSES[CLASSES.index(path.parent.name) - 1] / path.name
    wrong.parent.mkdir(exist_ok=True)
    path.rename(wrong)
    code, printed, complained = ask(
        "--budget_ms=60000,70000",
        "--batch",
        "--score",
        f"--manifest={manifest_path}",
        wrong,
        *class_folders[1:],
    )
    assert (code, complained, len(printed)) == (0, [], 2)
    assert re.fullmatch(r"4 of 5 right, ensemble of 4, \d+\.\d\d ms of 60000 ms", printed[0])


def test_a_score_needs_folders_named_after_classes(ask, picture, manifest_path):
    answer = ask("--budget_ms=5", "--batch", "--score", f"--manifest={manifest_path}", picture)
    _check_refused(answer, "(zero, one, two, three, four, five, six, seven, eight, nine), got")


@pytest.mark.parametrize("flag", ["--batch", "--manifest=absent.json"])
def test_a_score_needs_a_batch_and_a_manifest(ask, picture, flag):
    _check_refused(ask("--budget_ms=5", "--score", flag, picture), "--score needs --batch and")


def test_latencies_are_those_that_budgets_are_held_against(ask, picture, estimates):
    estimates({1: 1.5, 2: 2.5, 4: 4.5})
    code, printed, _ = ask("--latencies", picture)
    assert code == 0
    assert printed == [
        "| size |   ms |",
        "| ---: | ---: |",
        "|    1 | 1.50 |",
        "|    2 | 2.50 |",
        "|    4 | 4.50 |",
    ]


def test_the_table_of_latencies_has_what_the_manifest_tells(ask, picture, manifest_path, manifest):
    told = dataclasses.replace(
        manifest,
        accuracy=Accuracy("test", 360, {1: 0.9806, 2: 0.98, 4: 0.9889}),
        cost={1: Cost(1200, 7), 2: Cost(3, 7), 4: Cost(4, 7)},
    )
    manifest_path.write_text(told.to_text())
    code, printed, _ = ask("--latencies", f"--manifest={manifest_path}", picture)
    assert code == 0
    assert printed[0].split() == [
        "|",
        "size",
        "|",
        "accuracy",
        "|",
        "multiply-adds",
        "|",
        "ms",
        "|",
    ]
    assert printed[2].split()[:7] == ["|", "1", "|", "98.06%", "|", "1,200", "|"]


def test_latencies_are_measured_and_come_before_answers(ask, picture):
    code, printed, _ = ask("--latencies", "--budget_ms=60000", picture)
    assert code == 0
    rows = [line.strip("| ").split(" | ") for line in printed[2:5]]
    assert [size.strip() for size, _ in rows] == ["1", "2", "4"]
    latencies = [float(ms) for _, ms in rows]
    assert 0 < latencies[0] <= latencies[1] <= latencies[2] < 10_000
    assert printed[5].startswith(f"{picture}: class ")


def test_resize_fits_a_photo(ask, tmp_path):
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (64, 48), (10, 200, 30)).save(photo)
    code, _, complained = ask("--budget_ms=60000", photo)
    assert code == 1
    assert len(complained) == 1
    assert "--resize" in complained[0]
    code, printed, complained = ask("--budget_ms=60000", "--resize", photo)
    assert (code, len(printed), complained) == (0, 1, [])


def test_a_manifest_with_pixels_says_how_a_photo_is_read(
    ask, tmp_path, manifest_path, manifest_content, saved_model
):
    pixels = Pixels(8, 8, 1, central_crop=0.5)
    manifest_path.write_text(json.dumps({**manifest_content, "pixels": pixels.to_json()}))
    shades = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(shades).save(tmp_path / "photo.png", exif=exif)
    expected = pixels.image(Image.fromarray(np.rot90(shades, -1)))
    best, probability = _expected(saved_model, expected[None], "ensemble_4")
    arguments = ("--budget_ms=60000", f"--manifest={manifest_path}", tmp_path / "photo.png")
    code, printed, complained = ask(*arguments)
    assert (code, complained) == (0, [])
    assert f"{CLASSES[best]} ({probability:.3f}), ensemble of 4, " in printed[0]


def test_the_answers_to_sound_pictures_come_in_spite_of_bad_ones(ask, picture, tmp_path):
    arguments = ("--budget_ms=60000", tmp_path / "absent.png", picture, tmp_path, picture)
    code, printed, complained = ask(*arguments)
    assert code == 1
    assert [line.split(":")[0] for line in printed] == [str(picture)] * 2
    assert len(complained) == 1
    assert f"'{tmp_path / 'absent.png'}' cannot be read: " in complained[0]
    assert f"'{tmp_path}' cannot be read: " in complained[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"resize": "nearest"}, "must follow the rules"), ({"size": [32, 32]}, "shape (32, 32, 1)")],
)
def test_pixels_that_are_not_the_models_are_refused(
    ask, picture, manifest_path, manifest_content, change, reason
):
    pixels = {**Pixels(8, 8, 1).to_json(), **change}
    manifest_path.write_text(json.dumps({**manifest_content, "pixels": pixels}))
    _check_refused(ask("--budget_ms=5", f"--manifest={manifest_path}", picture), reason)


@pytest.mark.parametrize("budget_ms", ["0", "-5", "nan", "inf", "soon"])
def test_a_budget_must_be_a_positive_number(ask, picture, budget_ms):
    _check_refused(ask(f"--budget_ms={budget_ms}", picture), "budget_ms")


def test_a_budget_that_nothing_fits_is_refused(ask, picture):
    _check_refused(ask("--budget_ms=0.000001", picture), "smallest ensemble (size 1")


def test_no_budget_is_refused(ask, picture):
    _check_refused(ask(picture), "--budget_ms")


def test_no_model_is_refused(ask, picture):
    _check_refused(ask("--budget_ms=5", picture, model=""), "--model")


def test_no_pictures_are_refused(ask):
    _check_refused(ask("--budget_ms=5"), "at least one picture")


def test_a_missing_picture_is_refused(ask, tmp_path):
    _check_refused(ask("--budget_ms=5", tmp_path / "absent.png"), "absent.png")


def test_text_is_refused(ask, manifest_path):
    _check_refused(ask("--budget_ms=5", manifest_path), "cannot be read: a picture must be in")


def test_a_server_that_is_down_is_refused(ask, picture):
    _check_refused(ask("--budget_ms=5", picture, target="127.0.0.1:1"), "127.0.0.1:1")


def test_an_unknown_model_is_refused(ask, picture):
    _check_refused(ask("--budget_ms=5", picture, model="unknown"), "NOT_FOUND")


def test_a_missing_certificate_is_refused(ask, picture, tmp_path):
    answer = ask("--budget_ms=5", f"--tls_ca={tmp_path / 'absent.pem'}", picture)
    _check_refused(answer, "--tls_ca must be a readable file")


@pytest.mark.parametrize("text", ["word", "Key=word", "=word"])
def test_metadata_must_be_pairs(ask, picture, text):
    _check_refused(ask("--budget_ms=5", f"--metadata={text}", picture), "must be key=value")


def test_metadata_goes_with_every_call(ask, picture, monkeypatch):
    sent = []
    genuine = MetadataSource.pairs
    monkeypatch.setattr(
        MetadataSource, "pairs", lambda source: sent.append(genuine(source)) or sent[-1]
    )
    code, _, _ = ask("--budget_ms=60000", "--metadata=authorization=Bearer a=b", picture)
    assert code == 0
    assert set(sent) == {(("authorization", "Bearer a=b"),)}


def test_something_else_as_manifest_is_refused(ask, picture):
    _check_refused(ask("--budget_ms=5", f"--manifest={picture}", picture), "must be JSON")


def test_another_models_manifest_is_refused(ask, picture, manifest_path, manifest):
    other = dataclasses.replace(manifest, input=ModelInput("images", "uint8", (None, 32, 32, 3)))
    manifest_path.write_text(other.to_text())
    answer = ask("--budget_ms=60000", f"--manifest={manifest_path}", picture)
    _check_refused(answer, "manifest must be that of the model served")


def test_a_manifest_without_latencies_is_refused(ask, picture, manifest_path, manifest):
    manifest_path.write_text(dataclasses.replace(manifest, latency=None).to_text())
    answer = ask("--budget_ms=60000", f"--manifest={manifest_path}", picture)
    _check_refused(answer, "must hold a latency at batch size 1 for every ensemble size")


def test_class_names_of_another_number_are_refused(ask, picture, manifest_path, manifest):
    fewer = dataclasses.replace(manifest, classes=CLASSES[1:])
    manifest_path.write_text(fewer.to_text())
    answer = ask("--budget_ms=60000", f"--manifest={manifest_path}", picture)
    _check_refused(answer, "10 classes, got 9 names")


def _check_refused(answer, reason):
    code, printed, complained = answer
    assert code != 0
    assert printed == []
    assert len(complained) == 1
    assert complained[0].startswith("hne-predict: ")
    assert reason in complained[0]


@pytest.fixture
def parted(parted_path):
    """Addresses of two servers of a model that can be spread, by commas."""
    servers = [start(Servable("parted", parted_path)) for _ in range(2)]
    yield ",".join(server.address for server in servers)
    for server in servers:
        server.stop(grace_s=0)


def test_a_request_can_be_spread_over_servers(ask, picture, parted, parted_path, images):
    code, lines, errors = ask(
        "--spread", "--budget_ms=20000", picture, model="parted", target=parted
    )
    assert (code, errors) == (0, [])
    alone = tf.saved_model.load(str(parted_path)).signatures["ensemble_8"]
    expected = alone(images=tf.constant(images[:1]))["probabilities"].numpy()[0]
    best = f"class {expected.argmax()} ({expected.max():.3f})"
    assert len(lines) == 1
    assert lines[0].startswith(f"{picture}: {best}, 8 of 8 leaves, ")


@pytest.mark.parametrize(
    ("arguments", "target", "reason"),
    [
        (["--budget_ms=20"], "a:1,b:1", "one host:port without --spread, got 'a:1,b:1'"),
        (["--spread", "--latencies", "--budget_ms=20"], "a:1,b:1", "nor --latencies"),
        (["--spread", "--budget_for=1"], "a:1,b:1", "--spread needs --budget_ms"),
        (["--spread", "--budget_ms=20"], "a:1,a:1", "addresses of different servers"),
    ],
)
def test_servers_are_named_as_the_client_can_use_them(ask, picture, arguments, target, reason):
    code, lines, (error,) = ask(*arguments, picture, target=target)
    assert (code, lines) == (1, [])
    assert reason in error
