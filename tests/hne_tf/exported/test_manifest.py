"""The manifest: what is written is read, and anything else is refused in one line."""

import copy
import dataclasses
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.exported.interface import Normalisation, StepSignature
from hne_tf.exported.manifest import Flatbuffer, Manifest, read_manifest
from hne_tf.exported.measurements import (
    Accuracy,
    Cost,
    EarlyStopping,
    MeasuredLatency,
    Measurement,
    StoppingPoint,
    Storage,
)
from hne_tf.exported.versions import MANIFEST
from hne_tf.tree import Tree

CLASSES = ("ant", "bee", "cow")


def row(size, batch_size=1, threads=2, ms=1.0):
    return Measurement(f"ensemble_{size}", batch_size, 100, ms * size, 2 * ms * size, 9.0, threads)


def stopping(*targets):
    points = [StoppingPoint(t, (0.5, 0.75, 1.0), 0.9 * t, 2.5, 0.8, 0.7) for t in targets]
    return EarlyStopping("validation", 20, tuple(points))


@pytest.fixture
def manifest():
    """One that holds all there is."""
    rows = tuple(row(size, batch) for size in (1, 2, 4) for batch in (1, 8))
    return Manifest.of_tree(
        Tree((1, 2, 2)),
        "digits",
        CLASSES,
        (8, 6, 1),
        normalisation=Normalisation(True, (120.5,), (60.0,)),
        cost={size: Cost(10 * size, 5 * size) for size in (1, 2, 4)},
        accuracy=Accuracy("test", 30, {1: 0.5, 2: 0.75, 4: 1.0}),
        early_stopping=stopping(100, 200),
        latency=MeasuredLatency({"processor": "Abacus", "cores": 2}, rows, (row(4, threads=1),)),
        storage=Storage(bytes=2000, gzip_bytes=1000),
        mode="float32",
        pixels={"size": [8, 6], "channels": 1},
        versions={"hne_tf": "0.1.0"},
        flatbuffer=Flatbuffer(bytes=1500, sha256="0f"),
        record={"step": 30, "config_digest": "1c", "notes": {"from": ["a", None]}},
    )


@pytest.fixture
def content(manifest):
    return manifest.to_json()


def read(content):
    return Manifest.from_text(json.dumps(content), "here")


def test_what_is_written_is_read(manifest):
    assert Manifest.from_text(manifest.to_text(), "here") == manifest
    bare = Manifest.of_tree(Exits(3), "exits", CLASSES, (8, 6, 3), average="last")
    assert Manifest.from_text(bare.to_text(), "here") == bare


def test_the_keys_in_the_file_are_those_that_programs_know(content):
    assert content["format"] == 1
    assert content["branching"] == [1, 2, 2]
    assert content["sizes"] == [1, 2, 4]
    assert content["classes"] == list(CLASSES)
    assert content["input"] == {
        "name": "images",
        "dtype": "uint8",
        "shape": [None, 8, 6, 1],
        "normalisation": {"inside_the_model": True, "mean": [120.5], "std": [60.0]},
    }
    assert content["signatures"][:2] == [
        {"name": "serving_default", "size": 4},
        {"name": "ensemble_1", "size": 1},
    ]
    assert content["steps"][2] == {
        "signature": "step_3",
        "size": 3,
        "branch_block": 1,
        "input": "cache",
        "starts_from": "cache_0",
        "caches": ["cache_1"],
    }
    assert content["cost"]["4"] == {"multiply_adds": 40, "parameters": 20}
    assert content["accuracy"] == {
        "split": "test",
        "examples": 30,
        "by_size": {"1": 0.5, "2": 0.75, "4": 1.0},
    }
    assert content["early_stopping"]["curve"][0]["thresholds"] == [0.5, 0.75, 1.0]
    assert content["latency"]["measurements"][0]["p95_ms"] == 2.0
    assert content["latency"]["other_threads"][0]["threads"] == 1
    assert content["storage"] == {"bytes": 2000, "gzip_bytes": 1000}
    assert content["flatbuffer"] == {"bytes": 1500, "sha256": "0f"}
    # The record lies among the others.
    assert (content["step"], content["config_digest"]) == (30, "1c")


def test_what_was_not_measured_is_absent():
    bare = Manifest.of_tree(Exits(3), "exits", CLASSES, (8, 6, 3)).to_json()
    assert bare.keys() == {
        *("format", "model", "average", "exits", "sizes", "signatures", "steps", "classes"),
        "input",
    }
    assert bare["exits"] == 3
    assert bare["input"].keys() == {"name", "dtype", "shape"}


def earliest(content):
    """As the first version wrote it: no threads, nothing of early stopping or storage."""
    for key in ("early_stopping", "storage", "mode", "pixels", "flatbuffer", "notes"):
        del content[key]
    del content["input"]["normalisation"]
    del content["latency"]["other_threads"]
    for each in content["latency"]["measurements"]:
        del each["threads"]


def without_thresholds(content):
    content["early_stopping"] = None
    content["total_steps"] = 40


def of_one_leaf(content):
    content.update(
        branching=[1, 1],
        sizes=[1],
        signatures=content["signatures"][1:2],
        steps=[{**content["steps"][0], "caches": []}],
        early_stopping={"split": "validation", "examples": 20, "curve": []},
    )


def later(content):
    content["something"] = {"new": [1]}
    content["storage"]["zstd_bytes"] = 900


@pytest.mark.parametrize("change", [earliest, without_thresholds, of_one_leaf, later])
def test_manifests_of_other_versions_are_read(content, change):
    change(content)
    manifest = read(content)
    assert manifest.accuracy_by_size[1] == 0.5
    assert manifest.latency_ms[8][1] == 2.0
    assert manifest.measurement(1, 1).threads == (None if change is earliest else 2)
    # What a later version adds is kept when the manifest is written again.
    kept = {key: content[key] for key in ("step", "something", "total_steps") if key in content}
    assert kept.items() <= manifest.record.items()
    assert kept.items() <= manifest.to_json().items()


def test_a_tree_and_exits_are_told_apart(manifest):
    assert manifest.tree == Tree((1, 2, 2))
    exits = Manifest.of_tree(Exits(3), "exits", CLASSES, (8, 6, 3))
    assert (exits.tree, exits.sizes, exits.image_shape) == (Exits(3), (1, 2, 3), (8, 6, 3))
    assert exits.steps == tuple(map(StepSignature.of, Exits(3).steps))


# What callers ask.


def test_latencies_are_told_by_batch_size_and_ensemble_size(manifest):
    expected = {1: 2.0, 2: 4.0, 4: 8.0}
    assert manifest.latency_ms == {1: expected, 8: expected}
    assert manifest.batch_sizes == (1, 8)
    assert manifest.measurement(2, 8).p50_ms == 2.0
    assert manifest.measurement(4, 1, threads=1).threads == 1
    assert manifest.measurement(4, 1, threads=2).threads == 2


def changed_rows(manifest, keep):
    rows = tuple(filter(keep, manifest.latency.measurements))
    return dataclasses.replace(
        manifest, latency=dataclasses.replace(manifest.latency, measurements=rows)
    )


def test_a_latency_that_is_missing_is_named(manifest):
    partly = changed_rows(manifest, lambda row: row != manifest.measurement(2, 1))
    with pytest.raises(InputError, match=r"batch size 1 for every ensemble size, got none for \[2"):
        partly.latency_ms  # noqa: B018
    with pytest.raises(InputError, match=r"same batch sizes .* got .*'ensemble_2': \[8\]"):
        partly.batch_sizes  # noqa: B018
    with pytest.raises(InputError, match="ensemble size 2 at batch size 1, got none"):
        partly.measurement(2, 1)
    with pytest.raises(InputError, match="ensemble size 2 at batch size 1 by 3 threads, got none"):
        manifest.measurement(2, 1, threads=3)


def test_what_was_never_measured_is_named():
    bare = Manifest.of_tree(Exits(3), "exits", CLASSES, (8, 6, 3))
    for ask in (
        lambda: bare.latency_ms,
        lambda: bare.batch_sizes,
        lambda: bare.accuracy_by_size,
        lambda: bare.measurement(1, 1),
        lambda: bare.thresholds(100),
    ):
        with pytest.raises(InputError, match="the manifest of 'exits' must hold "):
            ask()


def test_thresholds_are_those_of_the_largest_target_that_is_allowed(manifest):
    low, high = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    points = (
        StoppingPoint(100, low, 90.0, 2.5, 0.8, 0.7),
        StoppingPoint(200, high, 190.0, 3.5, 0.8, 0.7),
    )
    block = EarlyStopping("validation", 20, points)
    manifest = dataclasses.replace(manifest, early_stopping=block)
    for allowed, expected in ((100, low), (199, low), (200, high), (1e12, high)):
        assert manifest.thresholds(allowed) == list(expected)
    for allowed in (99, 0, float("nan")):
        with pytest.raises(InputError, match="at least 100, the lowest target"):
            manifest.thresholds(allowed)


@pytest.mark.parametrize("block", [None, {"split": "validation", "examples": 1, "curve": []}])
def test_without_thresholds_none_are_told(content, block):
    content["early_stopping"] = block
    with pytest.raises(InputError, match="must hold thresholds of early stopping, got none"):
        read(content).thresholds(100)


# Where it lies.


def test_a_manifest_is_found_by_version_by_model_or_by_itself(manifest, tmp_path):
    for version in ("9", "10"):
        path = tmp_path / version / MANIFEST
        path.parent.mkdir(parents=True)
        path.write_text(dataclasses.replace(manifest, model=f"m{version}").to_text())
    assert read_manifest(tmp_path).model == "m10"
    assert read_manifest(tmp_path / "9").model == "m9"
    assert read_manifest(str(path)).model == "m10"


def test_where_there_is_no_manifest_the_path_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    for name, words in (
        ("absent.json", "readable file"),
        ("empty", "hold such folders"),
        ("picture.png", "must be JSON"),
        ("nul\0", "readable file"),
    ):
        with pytest.raises(InputError, match=words) as refusal:
            read_manifest(tmp_path / name)
        assert name.rstrip("\0") in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_neither_tensorflow_nor_numpy_is_loaded():
    program = (
        "import sys, hne_tf.exported.manifest\n"
        "print({'tensorflow', 'keras', 'numpy'} & sys.modules.keys())"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert output.stdout.strip() == "set()", output.stderr


# What is no manifest.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be JSON"),
        ("not JSON", "must be JSON"),
        (b"\xff\xfe\xff", "must be JSON"),
        ('{"format": NaN}', "NaN is not a number of JSON"),
        ("[" * 100_000, "must be JSON"),
        ("[" * 40 + "]" * 40, "at most 32 levels"),
        ("1" * 5000, "must be JSON"),
        ("[]", r"must have format 1, got \[\]"),
        ("7", "must have format 1, got 7"),
        ("{}", "must have format 1, got None"),
        ('{"format": 2}', "must have format 1, got 2"),
        ('{"format": true}', "must have format 1, got True"),
        ('{"format": "1\\n"}', r"must have format 1, got '1\\n'"),
        ('{"format": 1}', "must have the key 'model'"),
    ],
)
def test_another_text_is_refused(text, words):
    with pytest.raises(InputError, match=words) as refusal:
        Manifest.from_text(text, "'a.json'")
    assert "'a.json'" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


def put(*path, value):
    def change(content):
        *parents, last = path
        for key in parents:
            content = content[key]
        content[last] = value

    return change


def drop(*path):
    def change(content):
        *parents, last = path
        for key in parents:
            content = content[key]
        del content[last]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("sizes"), "must have the key 'sizes'"),
        (put("sizes", value=[]), "sizes must increase up to the number of leaves, 4"),
        (put("sizes", value=[1, 2]), r"sizes must increase .* got \(1, 2\)"),
        (put("sizes", value=[2, 1, 4]), "sizes must increase"),
        (put("sizes", value=[1, 3, 4]), "signatures must hold ensemble_3 of size 3"),
        (put("sizes", value=["1"]), r"sizes\[0\] must be an integer, got '1'"),
        (put("sizes", 0, value=0), r"sizes\[0\] must be an integer of 1 or more, got 0"),
        (put("sizes", 0, value=True), r"sizes\[0\] must be an integer, got True"),
        (put("sizes", 0, value=10**30), r"sizes\[0\] must be an integer, got 1000"),
        (put("signatures", 0, "size", value=5), "no more leaves than the tree"),
        (put("signatures", 1, "name", value="ensemble_2"), "names of their own"),
        (put("branching", value=[1, 2, 3]), "4 steps in a tree of"),
        (put("branching", value=[]), "4 steps in a tree of"),
        (put("branching", value=[2**62] * 9999), "4 steps in a tree of"),
        (drop("branching"), "either branching or exits must be given"),
        (put("exits", value=4), "either branching or exits must be given"),
        (drop("steps", 3), "3 steps in a tree of"),
        (put("steps", 1, "size", value=3), "step 2 must start from .* and have size 2"),
        (put("steps", 1, "starts_from", value="cache_7"), "step 2 must start from"),
        (put("steps", 1, "input", value="images"), "step 2 must start from"),
        (put("steps", 1, "signature", value="step_1"), "signatures of their own"),
        (put("steps", 0, "caches", value="cache_0"), r"steps\[0\].caches must be a list"),
        (put("classes", value=[]), "classes must be one or more"),
        (put("classes", 0, value="\ud800"), r"classes\[0\] must be a text, got '\\ud800'"),
        (put("model", value=""), "model must be a text that is not empty"),
        (put("input", "dtype", value="float32"), "input must be images, uint8"),
        (put("input", "shape", value=[]), "input must be images, uint8"),
        (put("input", "shape", value=[None, 8, 8]), "input must be images, uint8"),
        (put("input", "shape", value=[1, 8, 8, 1]), "input must be images, uint8"),
        (put("input", "shape", value=[None, None, 8, 1]), "input must be images, uint8"),
        (drop("cost", "2"), r"cost must hold every size, got none for \[2\]"),
        (put("cost", "02", value={}), r"a key of manifest.cost must be an integer, got '02'"),
        (put("cost", "4", value=7), r"cost\['4'\] must be an object, got 7"),
        (drop("accuracy", "by_size", "4"), r"accuracy.by_size must hold every size"),
        (put("accuracy", "by_size", "4", value=1.5), "must be a number from 0 to 1, got 1.5"),
        (put("accuracy", "by_size", value={}), r"accuracy.by_size must hold every size"),
        (drop("accuracy", "split"), "accuracy must have the key 'split'"),
        (put("latency", value=[1]), "latency must be an object"),
        (put("latency", "measurements", 3, "p95_ms", value=0.0), r"\[3\].p95_ms .* above 0"),
        (put("latency", "measurements", 3, "p95_ms", value=1e999), "must be JSON|a number"),
        (put("latency", "measurements", 3, "batch_size", value=0), r"\[3\].batch_size"),
        (put("early_stopping", "curve", 0, "thresholds", value=[0.5]), "must have 3 thresholds"),
        (put("early_stopping", "curve", 0, "thresholds", 0, value=0), "above 0, at most 1, got 0"),
        (put("flatbuffer", "bytes", value="7"), "flatbuffer.bytes must be an integer"),
        (put("pixels", value=3), "pixels must be an object"),
    ],
)
def test_a_malformed_manifest_is_refused_in_one_line(content, change, words):
    content = copy.deepcopy(content)
    change(content)
    with pytest.raises(InputError, match=words) as refusal:
        read(content)
    assert str(refusal.value).endswith(" here") or "here must be JSON" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"model": "mine"}, "keys of the manifest, got model"),
        ({"format": 2}, "keys of the manifest, got format"),
        ({"step": object()}, "record must hold JSON values"),
        ({"loss": float("nan")}, "record must hold JSON values"),
    ],
)
def test_a_record_that_cannot_be_kept_is_refused(manifest, record, words):
    with pytest.raises(InputError, match=words):
        dataclasses.replace(manifest, record=record)


def test_a_record_may_have_any_other_key(manifest):
    changed = dataclasses.replace(manifest, record={"record": 1, "steps_per_epoch": 2})
    assert Manifest.from_text(changed.to_text(), "here") == changed


# Fuzzing: whatever a file holds, there is a manifest or a line.


def nodes(value, path=()):
    """The paths to all values in JSON values."""
    yield path
    for key, inner in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value if isinstance(value, list) else ())
    ):
        yield from nodes(inner, (*path, key))


def full():
    rows = tuple(row(size) for size in (1, 2, 4))
    return Manifest.of_tree(
        Tree((1, 2, 2)),
        "digits",
        CLASSES,
        (8, 6, 1),
        cost={size: Cost(10 * size, 5) for size in (1, 2, 4)},
        accuracy=Accuracy("test", 30, {1: 0.5, 2: 0.75, 4: 1.0}),
        early_stopping=stopping(100, 200),
        latency=MeasuredLatency({"cores": 2}, rows, (row(4, threads=1),)),
        storage=Storage(2000, 1000),
        pixels={"size": [8, 6]},
        record={"step": 30},
    ).to_json()


PATHS = [path for path in nodes(full()) if path]
strange = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["images", "cache_0", "ensemble_4", "step_1", 4, 1e400, -1, 2**63]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


def answered(ask):
    """What a call returns; None if it is refused, which takes one line that can be printed."""
    try:
        return ask()
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert message.encode()
    return None


def read_or_refused(text):
    """Reads a text; what is read can be used and written."""
    if (manifest := answered(lambda: Manifest.from_text(text, "here"))) is None:
        return
    assert Manifest.from_text(manifest.to_text(), "here") == manifest
    assert manifest.tree.leaves == len(manifest.steps) == manifest.sizes[-1]
    assert len(manifest.image_shape) == 3
    for ask in (
        lambda: manifest.latency_ms,
        lambda: manifest.batch_sizes,
        lambda: manifest.accuracy_by_size,
        lambda: manifest.measurement(manifest.sizes[0], 1),
        lambda: manifest.thresholds(150),
    ):
        answered(ask)


@given(st.lists(st.tuples(st.sampled_from(PATHS), st.just(...) | strange), min_size=1, max_size=3))
def test_changed_values_give_a_manifest_or_a_line(bounded, changes):
    content = full()
    for path, value in changes:
        try:
            (drop(*path) if value is ... else put(*path, value=value))(content)
        except (KeyError, IndexError, TypeError):
            # An earlier change has taken the place away.
            continue
    with bounded():
        read_or_refused(json.dumps(content))


@given(st.data())
def test_changed_bytes_give_a_manifest_or_a_line(bounded, data):
    text = bytearray(json.dumps(full()).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.integers(0, 8))
        text[start:end] = data.draw(st.binary(max_size=8))
    with bounded():
        read_or_refused(bytes(text))
