"""What is known of each host: what it serves, whether it is avoided, what its parts take."""

import collections
import dataclasses
import threading
from collections.abc import Callable, Collection, Mapping, Sequence

from hne_tf.client.spread.plan import Offer, Plan, planned
from hne_tf.exported.interface import LeavesSignature

# How long a host may take to tell its signatures.
TELL_TIMEOUT_S = 5.0
# Longest wait before hosts that have all failed are asked again.
PAUSE_S = 0.05
# A host that failed is avoided for the first, twice as long each time it fails again.
_LEAST_PAUSE_S, _MOST_PAUSE_S = 0.5, 5.0
# Weight of the newest latency in the mean.
_NEWEST = 0.2


@dataclasses.dataclass
class _Host:
    """One host.

    Attributes:
      offer: None before the first answer.
      heard: whether it has answered or failed at all.
      up: whether parts may be asked.
      asked: whether its signatures are being asked for.
      again_s: when they may be asked for again.
      failures: since the last part that it computed.
      in_flight: parts that it is computing.
      latency_s: mean by part and number of rows.
    """

    offer: Offer | None = None
    heard: bool = False
    up: bool = False
    asked: bool = False
    again_s: float = 0.0
    failures: int = 0
    in_flight: int = 0
    latency_s: dict[tuple[LeavesSignature, int], float] = dataclasses.field(default_factory=dict)


class SpreadHosts:
    """The hosts of one model. Thread-safe.

    A host that fails is avoided for a while. Then it is asked for its signatures, and if
    it tells them, for leaves again. One that serves another version than the others, or no
    leaves, is asked now and then whether that has changed.

    Args:
      addresses: of the hosts, each different.
      model: the model's name, for messages.
      clock: seconds.
      assigned: parts by address that a host may be asked for; any by default.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        model: str,
        clock: Callable[[], float],
        assigned: Mapping[str, Collection[LeavesSignature]] | None = None,
    ) -> None:
        self._model = model
        self._clock = clock
        self._assigned = assigned
        self._hosts = {address: _Host() for address in addresses}
        self._plan: Plan | None = None
        self._is_refused = False
        self._changed = threading.Condition()
        self._turn = 0

    def due(self) -> list[str]:
        """The hosts whose signatures are to be asked for now; each is told once."""
        now_s = self._clock()
        with self._changed:
            found = [
                address
                for address, host in self._hosts.items()
                if not host.asked and now_s >= host.again_s and not self._is_used(address)
            ]
            for address in found:
                self._hosts[address].asked = True
            return found

    def _is_used(self, address: str) -> bool:
        """Whether a host is asked for leaves, and so tells by itself of another version."""
        if self._plan is None:
            # Hosts that cannot answer together may be given another model.
            return self._hosts[address].up and not self._is_refused
        return self._hosts[address].up and any(
            address in able for able in self._plan.hosts.values()
        )

    def told(self, address: str, offer: Offer) -> None:
        """A host has told what it serves."""
        if self._assigned is not None:
            parts = offer.parts & frozenset(self._assigned[address])
            offer = dataclasses.replace(offer, parts=parts)
        with self._changed:
            host = self._hosts[address]
            if host.offer and host.offer.version != offer.version:
                host.latency_s.clear()
            host.offer, host.heard, host.up, host.asked = offer, True, True, False
            host.again_s = self._clock() + _LEAST_PAUSE_S
            self._plan = None
            self._changed.notify_all()

    def untold(self, address: str) -> None:
        """A host has not told what it serves."""
        with self._changed:
            host = self._hosts[address]
            host.heard, host.asked = True, False
            self._avoid(host)

    def outdated(self, address: str) -> None:
        """A host serves another version than it told: it is asked again at once."""
        with self._changed:
            host = self._hosts[address]
            if host.up:
                host.up, host.again_s = False, self._clock()
                self._plan = None

    def failed(self, address: str) -> None:
        """A host was dead, too slow or full: it is avoided for a while."""
        with self._changed:
            host = self._hosts[address]
            # Requests that were on their way together are one failure.
            if host.up:
                self._avoid(host)

    def _avoid(self, host: _Host) -> None:
        host.up = False
        host.failures += 1
        pause_s = min(_LEAST_PAUSE_S * 2 ** (host.failures - 1), _MOST_PAUSE_S)
        host.again_s = self._clock() + pause_s
        self._plan = None
        self._changed.notify_all()

    def sent(self, address: str) -> None:
        """A part is asked for."""
        with self._changed:
            self._hosts[address].in_flight += 1

    def ended(self, address: str) -> None:
        """A part that was asked for has come, failed or been given up."""
        with self._changed:
            self._hosts[address].in_flight -= 1

    def computed(self, rows: int, address: str, part: LeavesSignature, latency_s: float) -> None:
        """A host has computed a part for so many rows."""
        with self._changed:
            host = self._hosts[address]
            host.failures = 0
            before_s = host.latency_s.get((part, rows), latency_s)
            host.latency_s[part, rows] = before_s + _NEWEST * (latency_s - before_s)

    def expected_s(self, rows: int, address: str, part: LeavesSignature) -> float:
        """Seconds that a part took for so many rows, 0 if it is not known."""
        with self._changed:
            return self._hosts[address].latency_s.get((part, rows), 0.0)

    def loads(self) -> dict[str, int]:
        """Parts that each host is computing, those first that have waited longest for a turn."""
        with self._changed:
            self._turn += 1
            loads = collections.deque(
                (address, host.in_flight) for address, host in self._hosts.items()
            )
            loads.rotate(-self._turn)
            return dict(loads)

    def up(self) -> frozenset[str]:
        """The hosts that may be asked for leaves now."""
        with self._changed:
            return frozenset(address for address, host in self._hosts.items() if host.up)

    def plan(self) -> Plan | None:
        """The plan with what is known now; None if nothing is.

        Raises:
          InputError: see `plan.planned`.
        """
        with self._changed:
            if self._plan is None:
                self._is_refused = True
                self._plan = self._planned()
                self._is_refused = False
            return self._plan

    def _planned(self) -> Plan | None:
        hosts = self._hosts.items()
        offers = {address: host.offer for address, host in hosts if host.offer}
        if not offers:
            return None
        up = [address for address, host in hosts if host.up]
        known = len(up) == len(self._hosts)
        return planned(offers, up, len(self._hosts), known, self._model)

    @property
    def heard(self) -> bool:
        """Whether every host has answered or failed once."""
        with self._changed:
            return all(host.heard for host in self._hosts.values())

    def await_heard(self, timeout_s: float) -> bool:
        """Waits until every host has answered or failed once; returns whether they have."""
        with self._changed:
            return self._changed.wait_for(lambda: self.heard, timeout_s)

    def await_change(self, timeout_s: float) -> None:
        """Waits until a host has answered or failed."""
        with self._changed:
            self._changed.wait(timeout_s)
