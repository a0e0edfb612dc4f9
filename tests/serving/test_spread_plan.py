"""Who computes which leaves, and what becomes of a request: without servers or a real clock."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from scipy import special

from hne_tf.client.spread import sums
from hne_tf.client.spread.gathering import Gathering, PartCall
from hne_tf.client.spread.hosts import SpreadHosts
from hne_tf.client.spread.plan import Offer, Plan, checked_assignment, planned, tiled
from hne_tf.errors import InputError
from hne_tf.exported.interface import SUMS, LeavesSignature
from hne_tf.models import averaging


def parts(*pairs):
    return [LeavesSignature(*pair) for pair in pairs]


def offer(*pairs, version=1, leaves=16, average="logits"):
    return Offer(version, average, leaves, frozenset(parts(*pairs)))


HALVES = ((0, 8), (8, 16))
QUARTERS = ((0, 4), (4, 8), (8, 12), (12, 16))


def plan_of(offers, up=None, known=True):
    return planned(offers, offers if up is None else up, len(offers), known, "digits")


def test_no_tensorflow_is_loaded():
    modules = "answers, gathering, hosts, plan, sums"
    code = f"import sys; from hne_tf.client.spread import {modules}; "
    code += "print({'tensorflow', 'keras', 'tensorflow_serving'} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


def test_an_offer_is_read_from_signatures():
    signatures = {
        "serving_default": ["logits", "probabilities"],
        "ensemble_16": ["logits", "probabilities"],
        "step_3": ["running_sum"],
        "leaves_0_8": ["running_sum_product", "temperatures"],
        "leaves_8_16": ["running_sum_product", "temperatures"],
        "leaves_1_2": ["something else"],
    }
    assert Offer.of(3, signatures) == offer(*HALVES, version=3, average="product")
    # A host of some leaves alone does not know the others.
    assert Offer.of(3, {"leaves_0_8": ["running_sum_sum"]}).leaves == 8
    assert Offer.of(3, {"serving_default": ["y"]}) == Offer(3, "", 0, frozenset())


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [(1, HALVES), (2, HALVES), (3, ((0, 4), (4, 8), (8, 16))), (4, QUARTERS), (9, QUARTERS)],
)
def test_there_are_as_many_parts_as_hosts_or_more(hosts, expected):
    assert tiled(parts(*HALVES, *QUARTERS), 16, hosts) == parts(*expected)


def test_the_largest_part_is_small():
    offered = parts((0, 2), (2, 16), (0, 7), (7, 16), (0, 15), (15, 16))
    assert tiled(offered, 16, 2) == parts((0, 7), (7, 16))


def test_tiles_are_the_best_of_all_subsets():
    random = np.random.default_rng(0)
    for _ in range(50):
        leaves, hosts = int(random.integers(2, 9)), int(random.integers(1, 5))
        bounds = [sorted(random.choice(leaves + 1, 2, replace=False)) for _ in range(7)]
        offered = sorted({LeavesSignature(int(a), int(b)) for a, b in bounds})
        subsets = [
            subset
            for count in range(len(offered) + 1)
            for subset in itertools.combinations(offered, count)
            if all(a.stop <= b.first for a, b in itertools.pairwise(subset))
        ]
        most = max(sum(part.size for part in subset) for subset in subsets)
        full = [s for s in subsets if sum(part.size for part in s) == most]
        enough = [len(s) for s in full if len(s) >= hosts]
        count = min(enough) if enough else max(map(len, full))
        largest = min(max(part.size for part in s) for s in full if len(s) == count)
        found = tiled(offered, leaves, hosts)
        assert tuple(found) in full
        assert len(found) == count
        assert max(part.size for part in found) == largest


def test_a_plan_says_who_can_compute_what():
    plan = plan_of({"a": offer(*HALVES), "b": offer((8, 16)), "c": offer((0, 8))})
    first, second = parts(*HALVES)
    assert plan == Plan(1, "logits", 16, {first: ("a", "c"), second: ("a", "b")})


def test_versions_are_never_mixed():
    old, new = offer(*HALVES), offer(*HALVES, version=2)
    # The one of more hosts, of as many the newest, of those that are up.
    assert plan_of({"a": old, "b": old, "c": new}).version == 1
    assert plan_of({"a": old, "b": new}).version == 2
    assert plan_of({"a": old, "b": new}, up=["a"]).version == 1
    assert plan_of({"a": old, "b": old, "c": new}, up=["c"]).version == 2
    # The one that computes most leaves.
    some = offer((0, 8), version=2)
    plan = plan_of({"a": old, "b": some, "c": some})
    assert plan.version == 1
    assert set(plan.hosts.values()) == {("a",)}
    # Two models under one number.
    assert plan_of({"a": offer(*HALVES, average="sum"), "b": old, "c": old}).average == "logits"


@pytest.mark.parametrize(
    ("offers", "reason"),
    [
        ([offer((0, 8)), offer((10, 16))], "leaves 0 to 15 must be computed.*got none for 8, 9$"),
        ([offer((0, 8)), offer((6, 16))], "without an overlap, got leaves 0 to 7, 6 to 15$"),
        ([offer(), offer()], r"must have signatures leaves_<a>_<b>.*none of 'digits' at 0, 1$"),
    ],
)
def test_leaves_that_overlap_or_are_missing_are_one_line(offers, reason):
    offers = {str(index): each for index, each in enumerate(offers)}
    with pytest.raises(InputError, match=reason):
        plan_of(offers)
    # A host that is away could have what is missing.
    plan = plan_of(offers, known=False)
    assert plan is None or plan.hosts


@pytest.mark.parametrize(
    ("assigned", "reason"),
    [
        ({"a": [(0, 8)], "b": [(6, 16)]}, "without an overlap, got leaves 0 to 7, 6 to 15"),
        ({"a": [(0, 8), (0, 4)], "b": [(4, 8)]}, "without an overlap"),
        ({"a": [(0, 8)], "b": [(9, 16)]}, "got none for 8"),
        ({"a": [(1, 8)], "b": [(8, 16)]}, "got none for 0"),
        ({"a": [], "b": []}, "got none for 0"),
        ({"a": [(0, 8)]}, r"for each of \['a', 'b'\], got \['a'\]"),
        ({"a": [(0, 8)], "b": [8, 16]}, r"pairs \(a, b\), got 8"),
    ],
)
def test_leaves_that_are_given_must_fit(assigned, reason):
    with pytest.raises(InputError, match=reason):
        checked_assignment(assigned, ["a", "b"])


def test_hosts_can_be_given_the_same_leaves():
    assigned = {"a": [(0, 8)], "b": [(8, 16)], "c": [(0, 8)]}
    given = checked_assignment(assigned, ["a", "b", "c"])
    assert given["a"] == given["c"] == frozenset(parts((0, 8)))


class Driver:
    """A gathering whose calls end when the test says so."""

    def __init__(self, hosts, up=None, loads=None, expected_s=None):
        addresses = sorted({each for able in hosts.values() for each in able})
        plan = Plan(1, "logits", 16, {LeavesSignature(*pair): able for pair, able in hosts.items()})
        self.gathering = Gathering(
            plan,
            addresses if up is None else up,
            loads or dict.fromkeys(addresses, 0),
            lambda address, part: (expected_s or {}).get(address, 0.0),
        )

    def send(self, left_s=1.0):
        calls = self.gathering.calls(left_s)
        return [(call.address, call.part.first) for call in calls]

    def came(self, address, first):
        self.gathering.computed(self._call(address, first), f"sum of {first}")

    def failed(self, address, first):
        self.gathering.failed(self._call(address, first))

    def _call(self, address, first):
        (call,) = [each for each in self.gathering.under_way if each.part.first == first]
        assert call == PartCall(address, call.part)
        return call


def test_each_host_gets_a_part():
    driver = Driver({(0, 8): ("a", "b"), (8, 16): ("a", "b")})
    assert driver.send() == [("a", 0), ("b", 8)]
    driver.came("b", 8)
    assert driver.send() == []
    driver.came("a", 0)
    assert not driver.gathering.under_way
    assert list(driver.gathering.came.values()) == ["sum of 8", "sum of 0"]


def test_a_host_has_one_part_at_a_time():
    driver = Driver(dict.fromkeys(QUARTERS, ("a", "b")))
    assert driver.send() == [("a", 0), ("b", 4)]
    driver.came("b", 4)
    assert driver.send() == [("b", 8)]


def test_who_can_do_little_is_asked_first():
    driver = Driver({(0, 8): ("a", "b"), (8, 16): ("a",)})
    assert sorted(driver.send()) == [("a", 8), ("b", 0)]


def test_of_replicas_the_idle_one_is_asked():
    loads = {"a": 2, "b": 0, "c": 1}
    driver = Driver({(0, 8): ("a", "b", "c"), (8, 16): ("a", "b", "c")}, loads=loads)
    assert driver.send() == [("b", 0), ("c", 8)]


def test_a_part_that_failed_goes_to_another_host():
    driver = Driver({(0, 8): ("a", "b"), (8, 16): ("a", "b")})
    driver.send()
    driver.failed("a", 0)
    # Not beside the part that it has.
    assert driver.send() == []
    driver.came("b", 8)
    assert driver.send() == [("b", 0)]
    driver.failed("b", 0)
    assert driver.send() == []
    assert not driver.gathering.under_way
    assert list(driver.gathering.came.values()) == ["sum of 8"]


def test_each_host_is_asked_for_one_part_however_slow_it_was():
    hosts = {(0, 8): ("a", "b"), (8, 16): ("a", "b")}
    assert len(Driver(hosts, expected_s={"a": 2.0, "b": 2.0}).send(left_s=1.0)) == 2


def test_another_part_is_asked_of_a_host_only_if_it_will_be_in_time():
    slow = {"a": 2.0}
    driver = Driver({(0, 8): ("a",), (8, 16): ("a",)}, expected_s=slow)
    assert driver.send(left_s=1.0) == [("a", 0)]
    driver.came("a", 0)
    assert driver.send(left_s=1.0) == []
    assert driver.send(left_s=2.5) == [("a", 8)]


def test_nothing_is_sent_after_the_deadline():
    assert Driver({(0, 8): ("a",)}).send(left_s=0.0) == []


def test_hosts_that_are_avoided_are_asked_only_if_there_are_no_others():
    hosts = {(0, 8): ("a",), (8, 16): ("b",)}
    assert Driver(hosts, up=["b"]).send() == [("b", 8)]
    assert Driver(hosts, up=[]).send() == [("a", 0), ("b", 8)]


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def hosts(clock):
    return SpreadHosts(["a", "b"], "digits", clock)


def test_every_host_is_asked_once_for_what_it_serves(hosts):
    assert hosts.plan() is None
    assert hosts.due() == ["a", "b"]
    assert hosts.due() == []
    assert not hosts.await_heard(0.0)
    hosts.told("a", offer(*HALVES))
    hosts.untold("b")
    assert hosts.await_heard(0.0)
    assert hosts.up() == {"a"}
    assert set(hosts.plan().hosts.values()) == {("a",)}


def test_a_host_that_fails_is_avoided_for_longer_each_time(hosts, clock):
    pauses = []
    hosts.due()
    hosts.told("b", offer(*HALVES))
    for _ in range(6):
        hosts.told("a", offer(*HALVES))
        assert hosts.up() == {"a", "b"}
        hosts.failed("a")
        # A request that was under way beside it.
        hosts.failed("a")
        assert hosts.up() == {"b"}
        began_s = clock.now_s
        while not hosts.due():
            clock.now_s += 0.125
        pauses.append(clock.now_s - began_s)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    hosts.told("a", offer(*HALVES))
    hosts.computed(1, "a", LeavesSignature(0, 8), 0.01)
    hosts.failed("a")
    clock.now_s += 0.5
    assert hosts.due() == ["a"]


def test_a_host_of_another_version_is_asked_at_once(hosts):
    hosts.due()
    for address in "ab":
        hosts.told(address, offer(*HALVES))
    hosts.outdated("a")
    assert hosts.up() == {"b"}
    assert hosts.due() == ["a"]
    hosts.told("a", offer(*HALVES, version=2))
    # As many of each: the newest.
    assert hosts.plan().version == 2
    hosts.failed("a")
    assert hosts.plan().version == 1


def test_a_host_that_is_not_used_is_asked_now_and_then(hosts, clock):
    hosts.due()
    hosts.told("a", offer(*HALVES))
    hosts.told("b", offer(*HALVES, version=2))
    assert hosts.plan().version == 2
    assert hosts.due() == []
    clock.now_s += 0.5
    assert hosts.due() == ["a"]
    hosts.told("a", offer(*HALVES, version=2))
    assert len(hosts.plan().hosts[LeavesSignature(0, 8)]) == 2
    clock.now_s += 10.0
    assert hosts.due() == []


def test_a_host_that_is_away_is_not_said_to_leave_leaves_out(hosts):
    hosts.due()
    hosts.told("a", offer((0, 8)))
    hosts.untold("b")
    assert list(hosts.plan().hosts) == parts((0, 8))
    hosts.told("b", offer((9, 16)))
    with pytest.raises(InputError, match="got none for 8"):
        hosts.plan()


def test_hosts_compute_only_what_they_are_given(clock):
    given = {"a": parts((8, 16)), "b": parts((0, 8))}
    hosts = SpreadHosts(["a", "b"], "digits", clock, given)
    for address in "ab":
        hosts.told(address, offer(*HALVES, *QUARTERS))
    first, second = parts(*HALVES)
    assert hosts.plan().hosts == {first: ("b",), second: ("a",)}


def test_calls_are_counted_and_take_turns(hosts):
    orders = [list(hosts.loads()) for _ in range(4)]
    assert orders == [["b", "a"], ["a", "b"]] * 2
    hosts.sent("a")
    assert hosts.loads() == {"a": 1, "b": 0}
    hosts.ended("a")
    assert hosts.loads() == {"a": 0, "b": 0}


def test_latencies_are_of_parts_and_rows(hosts):
    first, second = parts(*HALVES)
    hosts.computed(1, "a", first, 1.0)
    hosts.computed(1, "a", first, 2.0)
    assert hosts.expected_s(1, "a", first) == pytest.approx(1.2)
    unknown = [(8, "a", first), (1, "a", second), (1, "b", first)]
    assert [hosts.expected_s(*each) for each in unknown] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("average", SUMS)
@pytest.mark.parametrize("temperatures", [None, (1.0, 1.5, 0.5, 3.0)])
@pytest.mark.parametrize("split", [(4,), (1, 3), (2, 1)])
def test_sums_answer_as_averages_of_leaves_do(average, temperatures, split):
    logits = np.random.default_rng(2).normal(0, 3, (5, 4, 10)).astype(np.float32)
    size = sum(split)
    bounds = [0, *itertools.accumulate(split)]
    contributions = np.asarray(averaging.contribution(logits, average))
    totals = [contributions[:, a:b].sum(axis=1) for a, b in itertools.pairwise(bounds)]
    rows = None if temperatures is None else np.tile(np.float32(temperatures), (5, 1))
    temperature = 1.0 if temperatures is None else temperatures[size - 1]
    running_sum = contributions[:, :size].sum(axis=1)
    expected = np.asarray(averaging.answer(running_sum, size, average, temperature)[1])
    found = sums.probabilities(totals, size, average, rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_sums_of_huge_logits_stay_finite():
    found = sums.probabilities([np.array([[1e4, -1e4]])], 1, "logits")
    np.testing.assert_array_equal(found, special.softmax([[1e4, -1e4]], axis=-1))
