"""Which leaves are computed together and which hosts can compute them, of one version only."""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from hne_tf.errors import InputError
from hne_tf.exported.interface import LeavesSignature, averaged_by


@dataclasses.dataclass(frozen=True)
class Offer:
    """What a host serves of a model.

    Attributes:
      version: of the model.
      average: how leaves are averaged; empty without signatures of some leaves.
      leaves: number of leaves of the model, as far as the host knows them.
      parts: signatures of some leaves.
    """

    version: int
    average: str
    leaves: int
    parts: frozenset[LeavesSignature]

    @classmethod
    def of(cls, version: int, signatures: Mapping[str, Iterable[str]]) -> "Offer":
        """Reads what a server says of a model.

        Args:
          version: of the model.
          signatures: names of the outputs by name of the signature.
        """
        averages = {
            part: averaged_by(outputs)
            for name, outputs in signatures.items()
            if (part := LeavesSignature.named(name))
        }
        average = min(filter(None, averages.values()), default="")
        parts = frozenset(part for part, found in averages.items() if found and found == average)
        ensembles = (re.fullmatch(r"ensemble_([1-9]\d{0,8})", name) for name in signatures)
        sizes = [int(found.group(1)) for found in ensembles if found]
        leaves = max([*sizes, *(part.stop for part in parts)], default=0)
        return cls(version, average, leaves, parts)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked of whom.

    Attributes:
      version: of the model, the same for all hosts.
      average: how leaves are averaged, one of `interface.SUMS`.
      leaves: number of leaves of the model.
      hosts: by part, in the order of leaves, the addresses that can compute it. No two
        parts have a leaf in common.
    """

    version: int
    average: str
    leaves: int
    hosts: Mapping[LeavesSignature, tuple[str, ...]]


def planned(
    offers: Mapping[str, Offer], up: Collection[str], hosts: int, known: bool, model: str
) -> Plan | None:
    """Chooses a version, and parts of its leaves.

    The version is the one whose hosts that are up compute most leaves; of several the one
    with most hosts up, then the newest. There is no plan if no host is known that has
    signatures of some leaves.

    Args:
      offers: by address, of the hosts that are known.
      up: addresses that may be asked now; if there are none, all may.
      hosts: number of all hosts, which parts should suffice for.
      known: whether `offers` are of all hosts. Only then leaves can be said to be missing.
      model: its name, for messages.

    Raises:
      InputError: if all hosts are known and none has signatures of some leaves, or if all
        are of one version and leave some leaves out.
    """
    groups: dict[tuple[int, str], dict[str, Offer]] = {}
    for address, offer in offers.items():
        if offer.parts:
            groups.setdefault((offer.version, offer.average), {})[address] = offer
    if not groups and not known:
        return None
    if not groups:
        raise InputError(
            "a model must have signatures leaves_<a>_<b> (hne-export --spread) to be spread, got "
            f"none of {model!r} at {', '.join(offers)}"
        )

    def rank(version: tuple[int, str]) -> tuple[int, int, tuple[int, str]]:
        group = groups[version]
        asked = [group[each] for each in group if each in up or not up]
        return len(_covered(part for offer in asked for part in offer.parts)), len(asked), version

    version, average = max(groups, key=rank)
    group = groups[version, average]
    leaves = max(offer.leaves for offer in group.values())
    offered = sorted({part for offer in group.values() for part in offer.parts})
    parts = tiled(offered, leaves, hosts)
    if known and len(group) == len(offers):
        check_cover(offered, parts, leaves)
    able = {part: tuple(each for each in group if part in group[each].parts) for part in parts}
    return Plan(version, average, leaves, able)


def tiled(offered: Iterable[LeavesSignature], leaves: int, hosts: int) -> list[LeavesSignature]:
    """Chooses parts that have no leaf in common.

    They cover as many leaves as possible. Of those, they are as few as give each host one,
    or else as many as there are; of as many, those whose largest is smallest.
    """
    ending: dict[int, list[LeavesSignature]] = {}
    for part in offered:
        ending.setdefault(part.stop, []).append(part)
    # By number of leaves, then by number of parts: leaves covered, largest part, the parts.
    best: list[dict[int, tuple[int, int, list[LeavesSignature]]]] = [{0: (0, 0, [])}]
    for stop in range(1, leaves + 1):
        here = dict(best[stop - 1])
        for part in ending.get(stop, ()):
            for count, (covered, largest, parts) in best[part.first].items():
                found = (covered + part.size, min(largest, -part.size), [*parts, part])
                if count + 1 not in here or found[:2] > here[count + 1][:2]:
                    here[count + 1] = found
        best.append(here)
    most = max(covered for covered, _, _ in best[leaves].values())
    counts = [count for count, found in best[leaves].items() if found[0] == most]
    count = min((each for each in counts if each >= hosts), default=max(counts))
    return best[leaves][count][2]


def checked_assignment(
    assigned: Mapping[str, Sequence[Sequence[int]]], addresses: Collection[str]
) -> dict[str, frozenset[LeavesSignature]]:
    """The leaves that a caller has given to each host.

    Raises:
      InputError: for another host than there are, none for one, or leaves that overlap or
        are missing.
    """
    if set(assigned) != set(addresses):
        raise InputError(
            f"leaves must be given for each of {sorted(addresses)}, got {sorted(assigned)}"
        )
    parts = {each: frozenset(map(LeavesSignature.of, pairs)) for each, pairs in assigned.items()}
    offered = sorted(frozenset().union(*parts.values()))
    leaves = max((part.stop for part in offered), default=1)
    chosen = tiled(offered, leaves, len(offered))
    check_cover(offered, chosen, leaves)
    if len(chosen) < len(offered):
        raise _overlap(offered)
    return parts


def check_cover(
    offered: Sequence[LeavesSignature], chosen: Sequence[LeavesSignature], leaves: int
) -> None:
    """Raises `InputError` unless the chosen ones of the parts hold all leaves."""
    if sum(part.size for part in chosen) == leaves:
        return
    if missing := sorted(set(range(leaves)) - _covered(offered)):
        raise InputError(
            f"each of the leaves 0 to {leaves - 1} must be computed by a host, "
            f"got none for {', '.join(map(str, missing))}"
        )
    raise _overlap(offered)


def _overlap(offered: Sequence[LeavesSignature]) -> InputError:
    ranges = ", ".join(f"{part.first} to {part.stop - 1}" for part in offered)
    return InputError(f"hosts must part the leaves without an overlap, got leaves {ranges}")


def _covered(parts: Iterable[LeavesSignature]) -> set[int]:
    return {leaf for part in parts for leaf in range(part.first, part.stop)}
