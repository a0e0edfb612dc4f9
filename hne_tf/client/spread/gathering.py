"""One request over several hosts, as a state machine that sends and waits for nothing itself.

Whoever drives it, with threads or asyncio, sends the calls that it is given and tells
what has become of each.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Generic, TypeVar

from hne_tf.client.spread.plan import Plan
from hne_tf.exported.interface import LeavesSignature

Sum = TypeVar("Sum")


@dataclasses.dataclass(frozen=True)
class PartCall:
    """One part that one host is asked for."""

    address: str
    part: LeavesSignature


class Gathering(Generic[Sum]):
    """Gathers the parts of an answer.

    A host has one part of a request at a time, so that its first is not late for the
    others. A part that one host has failed goes to another that has time for it.

    Args:
      plan: which host can compute what.
      up: hosts that may be asked; if there are none of the plan, all are.
      loads: calls under way by address; of hosts that have as many, the first is taken.
      expected_s: seconds that a part takes on a host, 0 if it is not known.

    Attributes:
      came: what has come, by part.
      under_way: calls that have not ended.
    """

    def __init__(
        self,
        plan: Plan,
        up: Collection[str],
        loads: Mapping[str, int],
        expected_s: Callable[[str, LeavesSignature], float],
    ) -> None:
        able = {each for hosts in plan.hosts.values() for each in hosts}
        usable = able & set(up) or able
        self._free = [each for each in loads if each in usable]
        self._loads = loads
        self._expected_s = expected_s
        self._able = plan.hosts
        self._waiting = list(plan.hosts)
        self._asked: set[str] = set()
        self.came: dict[LeavesSignature, Sum] = {}
        self.under_way: set[PartCall] = set()

    def calls(self, left_s: float) -> list[PartCall]:
        """The calls to send now.

        Args:
          left_s: seconds until the deadline.
        """
        found = []
        while left_s > 0 and (call := self._next(left_s)):
            self._waiting.remove(call.part)
            self._free.remove(call.address)
            self._asked.add(call.address)
            self.under_way.add(call)
            found.append(call)
        return found

    def _next(self, left_s: float) -> PartCall | None:
        """The call of the part and the host that have the fewest others to choose from."""
        choices = [
            (len(able), len(self._parts_of(each)), self._loads[each], rank, PartCall(each, part))
            for part in self._waiting
            if (able := [each for each in self._able[part] if each in self._free])
            for rank, each in enumerate(self._free)
            if each in able and self._is_timely(PartCall(each, part), left_s)
        ]
        return min(choices, key=lambda choice: choice[:-1])[-1] if choices else None

    def _parts_of(self, address: str) -> list[LeavesSignature]:
        return [part for part in self._waiting if address in self._able[part]]

    def _is_timely(self, call: PartCall, left_s: float) -> bool:
        # A host that has nothing else to do is always asked: estimates can be wrong, and
        # only its calls correct them.
        first = call.address not in self._asked
        return first or self._expected_s(call.address, call.part) <= left_s

    def computed(self, call: PartCall, total: Sum) -> None:
        """A call has brought what its part adds to the running sum."""
        self._end(call)
        self.came[call.part] = total
        self._free.append(call.address)

    def failed(self, call: PartCall) -> None:
        """A call has failed: its host is not asked again."""
        self._end(call)
        self._waiting.append(call.part)

    def _end(self, call: PartCall) -> None:
        self.under_way.remove(call)
