"""Signatures of some leaves: sums that add up to the answer of all."""

import json

import numpy as np
import pytest
import tensorflow as tf
from scipy import special

import hne_tf as hne
from hne_tf.bin import export as binary
from hne_tf.errors import InputError
from hne_tf.export import exporter, signatures, verification, warmup
from hne_tf.exported import interface
from hne_tf.exported.interface import LeavesSignature
from hne_tf.exported.manifest import Manifest, read_manifest
from hne_tf.exported.model import load
from hne_tf.models.averaging import AVERAGES
from hne_tf.models.folding import deployed

PARTS = ((0, 1), (1, 4))


def tree_of(average):
    resnet = hne.architectures.ResNet("basic", widths=(4, 4), units=(1, 1), strides=(1, 2))
    images = hne.ImageSpec((8, 8, 1), tuple("0123456789"), mean=(78.0,), std=(96.0,))
    return hne.TreeEnsemble(resnet, hne.Tree((2, 2)), images, average=average)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (3, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    base = tmp_path_factory.mktemp("models") / "parted"
    return exporter.export(tree_of("logits"), base, leaves=PARTS, report=str)


def test_sums_of_parts_make_the_answer_of_all(version, images):
    model = load(version)
    parts = [model.signature(f"leaves_{a}_{b}").run({"images": images}) for a, b in PARTS]
    mean = sum(np.asarray(part["running_sum_logits"]) for part in parts) / 4
    expected = np.asarray(model.signature("ensemble_4").run({"images": images})["probabilities"])
    np.testing.assert_allclose(special.softmax(mean, axis=-1), expected, atol=1e-6)


def test_the_manifest_lists_profiles_and_warms_up_the_parts(version):
    manifest = read_manifest(version)
    assert [(part.first, part.stop) for part in manifest.leaves] == list(PARTS)
    measured = {row.signature for row in manifest.latency.measurements}
    assert measured >= {"leaves_0_1", "leaves_1_4"}
    # Nothing that knows ensembles only is confused by them.
    assert set(manifest.latency_ms[1]) == set(manifest.sizes)
    warmed = [
        tf.io.gfile.GFile(str(path), "rb").read()
        for path in (version / "assets.extra").glob("tf_serving_warmup_requests")
    ]
    assert b"leaves_0_1" in warmed[0]
    assert b"leaves_1_4" in warmed[0]


def test_a_manifest_of_before_has_no_parts(version):
    content = read_manifest(version).to_json()
    assert content.pop("leaves") == [{"first": 0, "stop": 1}, {"first": 1, "stop": 4}]
    assert Manifest.from_text(json.dumps(content), "an old one").leaves == ()


@pytest.mark.parametrize("average", interface.SUMS)
@pytest.mark.parametrize("temperatures", [None, (1.0, 2.0, 3.0, 4.0)])
def test_every_average_that_is_a_sum_can_be_parted(average, temperatures, images):
    model = deployed(tree_of(average))
    parts = tuple(map(LeavesSignature.of, PARTS))
    endpoints = signatures.signatures(model, [4], temperatures, parts)
    logits = model(images, training=False).numpy()
    for (first, stop), part in zip(PARTS, parts, strict=True):
        answer = {
            name: value.numpy()
            for name, value in endpoints[part.signature](tf.constant(images)).items()
        }
        own = logits[:, first:stop].astype(np.float64)
        added = {
            "logits": own,
            "sum": own,
            "probabilities": special.softmax(own, axis=-1),
            "product": np.log(np.maximum(own, 1e-3)),
        }[average].sum(axis=1)
        total = answer.pop(f"running_sum_{average}")
        np.testing.assert_allclose(total, added, rtol=1e-4, atol=1e-5)
        given = answer.pop("temperatures", None)
        assert (given is None) == (temperatures is None)
        if temperatures:
            np.testing.assert_array_equal(given, [temperatures] * len(images))
        assert not answer
        # TF Serving batches along the first dimension, which must be known to be free.
        shapes = endpoints[part.signature].get_concrete_function().structured_outputs
        assert all(spec.shape[0] is None and spec.shape[1] for spec in shapes.values())


def test_a_part_computes_only_the_nodes_on_its_paths():
    model = deployed(tree_of("logits"))
    parts = [LeavesSignature(0, 1), LeavesSignature(0, 2), LeavesSignature(0, 4)]
    endpoints = signatures.signatures(model, [4], None, parts)

    def convolutions(part):
        graph = endpoints[part.signature].get_concrete_function().graph
        return sum(op.type == "Conv2D" for op in graph.get_operations())

    nodes = [len(model.tree.nodes_of(range(part.first, part.stop))) for part in parts]
    assert nodes == [2, 3, 6]
    counts = list(map(convolutions, parts))
    # Both roots compute alike, and so do all four leaves.
    root_and_leaf, root_and_leaves, everything = counts
    assert everything == 2 * root_and_leaves
    assert root_and_leaves < 2 * root_and_leaf


def test_a_part_that_differs_is_found(version, images):
    manifest = read_manifest(version)
    logits = np.random.default_rng(0).normal(size=(3, 4, 10))
    (part, _) = manifest.leaves
    expected = verification.expected_sums(logits, part, manifest)
    wrong = {name: value + 1e-2 for name, value in expected.items()}
    assert list(verification._differences("x", expected, expected, set(expected))) == []
    assert len(list(verification._differences("x", wrong, expected, set(expected)))) == 1
    np.testing.assert_allclose(expected["running_sum_logits"], logits[:, 0])


@pytest.mark.parametrize("average", sorted(set(AVERAGES) - set(interface.SUMS) - {"last"}))
def test_an_average_that_is_no_sum_over_leaves_is_refused(average):
    with pytest.raises(InputError, match=r"must be averaged by one of logits, .*got 'cached_"):
        interface.check_leaves([LeavesSignature(0, 1)], average, 4)


@pytest.mark.parametrize(
    ("leaves", "reason"),
    [
        ([(0, 5)], r"of the leaves 0 to 3, got \['leaves_0_5'\]"),
        ([(0, 2), (0, 2)], "must be different"),
        ([(2, 2)], "from a to before b, 0 <= a < b, got 2 and 2"),
        ([(-1, 2)], "got -1 and 2"),
        ([(0, True)], "got 0 and True"),
        ([(0, "2")], "got 0 and '2'"),
        ([4], r"must be pairs \(a, b\), got 4"),
        ([(0, 1, 2)], r"must be pairs \(a, b\), got \(0, 1, 2\)"),
    ],
)
def test_leaves_that_cannot_be_publish_nothing(tmp_path, leaves, reason):
    with pytest.raises(InputError, match=reason):
        exporter.export(tree_of("logits"), tmp_path / "digits", leaves=leaves, report=str)
    assert not list(tmp_path.glob("**/saved_model.pb"))


def test_names_of_signatures_are_read_back():
    assert LeavesSignature.named("leaves_3_17") == LeavesSignature(3, 17)
    for name in (
        "ensemble_4",
        "leaves_3_3",
        "leaves_03_4",
        "leaves_3",
        "leaves_-1_4",
        "leaves_4_3",
    ):
        assert LeavesSignature.named(name) is None
    assert interface.averaged_by(["temperatures", "running_sum_product"]) == "product"
    assert interface.averaged_by(["probabilities", "running_sum"]) is None


@pytest.mark.parametrize(("leaves", "parts"), [(16, 2), (16, 3), (5, 5), (7, 4)])
def test_leaves_are_split_evenly(leaves, parts):
    ranges = interface.split(leaves, parts)
    assert [leaf for part in ranges for leaf in range(part.first, part.stop)] == [*range(leaves)]
    assert max(part.size for part in ranges) - min(part.size for part in ranges) <= 1
    assert len(ranges) == parts


@pytest.mark.parametrize("parts", [0, 1, 17])
def test_a_spread_over_too_many_or_too_few_is_refused(parts):
    with pytest.raises(InputError, match=f"got {parts}"):
        interface.split(16, parts)


def test_warm_up_counts_the_parts():
    names = [f"leaves_{leaf}_{leaf + 1}" for leaf in range(1001)]
    with pytest.raises(InputError, match="at most 1000 warm-up requests"):
        warmup.check_count(names, (1,))


@pytest.mark.slow
def test_the_binary_takes_numbers_of_servers(trained_workdir, tmp_path, capsys):
    base = tmp_path / "tiny"
    flags = [f"--workdir={trained_workdir.path}", f"--model_base_path={base}", "--sizes=1"]
    assert binary.run([*flags, "--spread=2,4"]) == 0, capsys.readouterr().err
    names = [part.signature for part in read_manifest(base / "1").leaves]
    assert names == [
        *("leaves_0_2", "leaves_2_4"),
        *("leaves_0_1", "leaves_1_2", "leaves_2_3", "leaves_3_4"),
    ]
    assert binary.run([*flags, "--spread=17"]) == 1
    assert "from 2 parts to one a leaf, 4, got 17" in capsys.readouterr().err
