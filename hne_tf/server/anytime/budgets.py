"""What a budget allows: the end of a request, and the sizes to ask for until then.

No transport and no model: the embedded server and the gateway decide by it.
"""

import dataclasses
import math
import re
import time
from collections.abc import Iterable

import grpc

from hne_tf.client.latency.latencies import Latencies
from hne_tf.client.latency.profile import Choice
from hne_tf.server.errors import RequestError

ANYTIME = "anytime"
METADATA_KEY = "hne-budget-ms"
# Outputs of `anytime`, each with a value per row.
PROBABILITIES, SIZE, LATENCY = "probabilities", "size", "latency_ms"
OUTPUTS = (LATENCY, PROBABILITIES, SIZE)

_ENSEMBLE = re.compile(r"ensemble_([1-9][0-9]{0,8})")
# gRPC's word for no deadline is one some centuries away.
_NO_DEADLINE_S = 1e9
# Kept for the way back: a part of what is allowed, at least a millisecond, never most of it.
_MARGIN, _LEAST_MARGIN_S, _MOST_MARGIN = 0.05, 1e-3, 0.5
# A smaller answer is asked for as a reserve when this many times its own time is left, or this
# part of the time that there was.
_RESERVE_ROOM, _RESERVE_SHARE = 2.0, 0.1
# A refusal without asking rests on an answer that is not older.
_REFUSAL_MS = 2000.0


def seconds_left(remaining_s: float | None) -> float | None:
    """What gRPC says of a deadline, None for none."""
    return None if remaining_s is None or remaining_s > _NO_DEADLINE_S else max(0.0, remaining_s)


def from_metadata(pairs: Iterable[tuple[str, str | bytes]]) -> float | None:
    """The budget in milliseconds that a call's metadata states; None if they do not.

    Raises:
      RequestError: INVALID_ARGUMENT for a budget that is not a number above 0.
    """
    stated = [value for key, value in pairs if key == METADATA_KEY]
    return min(map(parse, stated)) if stated else None


def parse(text: str | bytes) -> float:
    """The budget in milliseconds that a text states.

    Raises:
      RequestError: INVALID_ARGUMENT for a budget that is not a number above 0.
    """
    try:
        budget_ms = float(text)
    except ValueError:
        budget_ms = math.nan
    if not 0 < budget_ms < math.inf:
        raise RequestError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"{METADATA_KEY} must be a number above 0, got {text!r:.40}",
        )
    return budget_ms


def end_s(
    started_s: float, remaining_s: float | None, budget_ms: float | None, least_margin_s: float = 0
) -> float:
    """When an answer must be ready to be sent, on the clock of `started_s`; infinite if never.

    Args:
      started_s: when the request came.
      remaining_s: what is left now until its deadline; None for no deadline.
      budget_ms: what its answer may take from `started_s`; None for no budget.
      least_margin_s: what the way back is known to take.
    """
    allowed_s = math.inf if budget_ms is None else budget_ms / 1000
    if remaining_s is not None:
        allowed_s = min(allowed_s, time.perf_counter() - started_s + remaining_s)
    if allowed_s == math.inf:
        return math.inf
    margin_s = max(_MARGIN * allowed_s, _LEAST_MARGIN_S, least_margin_s)
    return started_s + allowed_s - min(margin_s, _MOST_MARGIN * allowed_s)


def ensemble_size(signature: str) -> int | None:
    """The size of a signature `ensemble_<size>`; None for any other."""
    match = _ENSEMBLE.fullmatch(signature)
    return int(match.group(1)) if match else None


@dataclasses.dataclass(frozen=True)
class SizeChoice:
    """How a request begins.

    Attributes:
      size: the ensemble to ask first.
      sure: whether measurements stand behind that; otherwise it is the smallest,
        and larger ones are for after its answer.
      reserve_ms: from now, when the smallest is to be asked as well if the first
        was not answered; infinite if never.
    """

    size: int
    sure: bool
    reserve_ms: float


def plan(latencies: Latencies, rows: int, left_ms: float, share_ms: float = math.inf) -> SizeChoice:
    """Begins a request.

    Args:
      latencies: of the sizes on offer, at least one.
      rows: images of the request.
      left_ms: until its end; infinite for none.
      share_ms: what it may take for the sake of others.

    Raises:
      RequestError: RESOURCE_EXHAUSTED if not even the smallest ensemble is in time.
    """
    choice = latencies.choose(rows, max(0.0, min(left_ms, share_ms)))
    if choice.fastest_ms == math.inf:
        return SizeChoice(choice.size, left_ms == math.inf, math.inf)
    _check(choice, left_ms)
    reserve_ms = math.inf
    if not choice.is_smallest and left_ms < math.inf:
        own_ms = choice.smallest_ms - choice.waiting_ms
        room_ms = max(_RESERVE_ROOM * own_ms, _RESERVE_SHARE * left_ms)
        reserve_ms = max(choice.estimate_ms, left_ms - room_ms)
    return SizeChoice(choice.size, True, reserve_ms)


def larger(latencies: Latencies, rows: int, left_ms: float, size: int) -> int | None:
    """The size to go on to from an answer of `size`; None if none is likely to be in time."""
    choice = latencies.choose(rows, left_ms)
    return choice.size if choice is not None and choice.fits and choice.size > size else None


def _check(choice: Choice, left_ms: float) -> None:
    if choice.fits or left_ms == math.inf:
        return
    # Once in a while it is tried all the same, because estimates can be wrong.
    hopeless = choice.fastest_ms > left_ms and choice.asked_ago_ms < _REFUSAL_MS
    queued = choice.in_flight > 1 and choice.waiting_ms + choice.fastest_ms > left_ms
    if left_ms <= 0 or hopeless or queued:
        raise RequestError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"no time for the smallest ensemble (size {choice.size}): it takes at least "
            f"{choice.fastest_ms:.3g} ms behind {choice.in_flight} others, and "
            f"{max(0.0, left_ms):.3g} ms are left",
        )
