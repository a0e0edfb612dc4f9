"""Reading a manifest, whole and damaged."""

import json

import pytest

from hne_tf.client.manifest import read_manifest
from hne_tf.data.pixels import Pixels
from hne_tf.errors import InputError


def test_reads_what_serving_needs(manifest_path, manifest_content):
    manifest = read_manifest(manifest_path)
    assert manifest.model == "digits"
    assert list(manifest.classes) == manifest_content["classes"]
    assert manifest.image_shape == (8, 8, 1)
    assert manifest.latency_ms == {
        1: {1: 1.0, 2: 2.0, 4: 4.0},
        16: {1: 16.0, 2: 32.0, 4: 64.0},
    }
    assert manifest.steps == ()


def test_pixels_are_read_and_absent_in_older_manifests(manifest_path, manifest_content):
    assert read_manifest(manifest_path).pixels is None
    pixels = Pixels(8, 8, 1, 0.875)
    manifest_path.write_text(json.dumps({**manifest_content, "pixels": pixels.to_json()}))
    assert read_manifest(manifest_path).pixels == pixels


def test_reads_accuracy_and_cost_where_they_are_told(manifest_path, manifest_content):
    without = read_manifest(manifest_path)
    assert (without.accuracy, without.multiply_adds) == ({}, {})
    told = {
        "accuracy": {"split": "test", "by_size": {"1": 0.98, "4": 0.99}},
        "cost": {"1": {"multiply_adds": 10, "parameters": 3}},
    }
    manifest_path.write_text(json.dumps({**manifest_content, **told}))
    manifest = read_manifest(manifest_path)
    assert manifest.accuracy == {1: 0.98, 4: 0.99}
    assert manifest.multiply_adds == {1: 10}
    manifest_path.write_text(json.dumps({**manifest_content, "accuracy": None}))
    assert read_manifest(manifest_path).accuracy == {}


def test_reads_how_steps_follow_each_other(tmp_path, manifest_content):
    step = {
        "signature": "step_1",
        "size": 1,
        "branch_block": 0,
        "input": "images",
        "starts_from": "images",
        "caches": ["cache_0"],
    }
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**manifest_content, "steps": [step]}))
    assert read_manifest(path).steps == (step,)
    for damaged in ({**step, "size": 2}, {"size": 1}):
        path.write_text(json.dumps({**manifest_content, "steps": [damaged]}))
        with pytest.raises(InputError, match="step 1 is described as"):
            read_manifest(path)


@pytest.mark.parametrize("key", ["model", "sizes", "classes", "input", "latency"])
def test_a_missing_key_is_named(tmp_path, manifest_content, key):
    del manifest_content[key]
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest_content))
    with pytest.raises(InputError, match=f"must have the key '{key}'"):
        read_manifest(path)


@pytest.mark.parametrize("text", ["", "not JSON", "[]", "7", '{"sizes": 3}', '{"sizes": ["a"]}'])
def test_something_else_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(InputError, match="manifest must") as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value)


def test_a_picture_is_no_manifest(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(InputError, match="must be JSON"):
        read_manifest(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="must be a readable file"):
        read_manifest(tmp_path / "absent.json")


def test_a_size_without_a_latency_is_named(tmp_path, manifest_content):
    measurements = manifest_content["latency"]["measurements"]
    manifest_content["latency"]["measurements"] = [
        entry
        for entry in measurements
        if (entry["signature"], entry["batch_size"]) != ("ensemble_2", 1)
    ]
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest_content))
    with pytest.raises(InputError, match=r"got none for \[2\]"):
        read_manifest(path)


@pytest.mark.parametrize("latency", [0.0, -1.0, float("nan"), float("inf")])
def test_a_latency_must_be_a_time(tmp_path, manifest_content, latency):
    manifest_content["latency"]["measurements"][0]["p95_ms"] = latency
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest_content))
    with pytest.raises(InputError, match="more than 0 ms"):
        read_manifest(path)
