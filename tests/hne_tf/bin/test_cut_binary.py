import re

import keras
import pytest
from keras import layers

from hne_tf.bin import cut


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The file of three convolutions and a classifier, for images of any size."""
    inputs = x = keras.Input((None, None, 3))
    for index in range(3):
        x = layers.Conv2D(4, 3, padding="same", name=f"conv{index}")(x)
    x = layers.Dense(5, name="classifier")(layers.GlobalAveragePooling2D(name="pool")(x))
    path = tmp_path_factory.mktemp("models") / "network.keras"
    keras.Model(inputs, x).save(path)
    return str(path)


def rows(lines):
    return [re.split(r" *\| *", line.strip("| ")) for line in lines if line.startswith("| ")]


def test_places_and_the_cost_of_each_size_are_shown(run_binary, network):
    arguments = [network, "--image_shape=8,8,3", "--branching=1,2", "--cut_at=conv1"]
    code, lines, _ = run_binary(cut, *arguments)
    assert code == 0
    found = rows(lines)
    assert [row[0] for row in found if row[0].startswith("conv")] == ["conv0", "conv1", "conv2"]
    first, second = 64 * 9 * 3 * 4, 64 * 9 * 4 * 4
    after = second + 4 * 5
    once, twice = first + second + after, first + second + 2 * after
    (row,) = (row for row in found if row[0] == "conv1")
    assert row[1:] == [
        *("8 x 8 x 4", f"{first + second:,}", f"{after:,}", "260", "173"),
        "end of 0",
    ]
    assert found[-2:] == [
        ["1", f"{once:,}", "433", "1.00"],
        ["2", f"{twice:,}", "606", f"{twice / once:.2f}"],
    ]


def test_an_import_path_makes_the_model(run_binary):
    code, lines, _ = run_binary(
        cut, "keras.applications.MobileNet", "--image_shape=32,32,3", "--branching=1,2,2"
    )
    assert code == 0
    blocks = [row[-1] for row in rows(lines) if row[-1].startswith("end of")]
    assert blocks == ["end of 0", "end of 1"]


def test_blocks_that_differ_much_in_cost_are_told(run_binary, tmp_path):
    inputs = x = keras.Input((8, 8, 3))
    for index, filters in enumerate((1, 1, 64)):
        x = layers.Conv2D(filters, 3, padding="same", name=f"conv{index}")(x)
    path = tmp_path / "odd.keras"
    keras.Model(inputs, layers.Conv2D(64, 3, name="last")(x)).save(path)
    code, lines, _ = run_binary(cut, str(path), "--branching=1,1,1", "--cut_at=conv1,conv2")
    assert code == 0
    assert lines[-1].startswith("note: blocks cost 0.0")
    code, lines, _ = run_binary(cut, str(path), "--branching=1")
    assert not any(line.startswith("note") for line in lines)


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def test_bad_input_is_refused(assert_refused, network, tmp_path):
    assert_refused(cut, [], "one model must be named, got none")
    assert_refused(cut, [network, network], "one model must be named")
    assert_refused(cut, [network], "--image_shape must be set", "(None, None, 3)")
    assert_refused(cut, [str(tmp_path / "no.keras")], "no.keras")
    (tmp_path / "odd.keras").write_text("no model")
    assert_refused(cut, [str(tmp_path / "odd.keras")], "must be a model that Keras can load")
    assert_refused(cut, ["no_such_module.Net"], "got 'no_such_module:Net'")
    assert_refused(cut, ["keras.applications.Net"], "must name a function of keras.applications")
    assert_refused(cut, ["Net"], "an import path such as keras.applications.Xception, got 'Net'")
    assert_refused(cut, ["os.getcwd"], "must return a Keras model, got str")
    subclassed = f"{__name__}.Subclassed"
    assert_refused(cut, [subclassed], "must be a functional Keras model", "got Subclassed")
    shape = "--image_shape=8,8,3"
    assert_refused(cut, ["keras.applications.MobileNet", shape], "must return a model for")
    assert_refused(cut, [network, shape, "--branching=1,x"], "--branching takes integers")
    assert_refused(cut, [network, shape, "--branching=1,2,2,2,2,2"], "must have 5 places")
    assert_refused(cut, [network, shape, "--cut_at=no,conv0,conv1"], "layers of the model", "'no'")
