"""Has the device become slower since the session began? An anchor, measured now and then, tells."""

from __future__ import annotations

from enum import StrEnum

import msgspec

SLOWER = 1.3  # times the anchor's first latency; thermal throttling costs more, noise less


class Verdict(StrEnum):
    STEADY = "steady"
    SUSPECTED = "suspected"  # measure the anchor once more
    SLOWER = "slower"


class Drift(msgspec.Struct, frozen=True):
    """What the anchor says.

    :param ratio: its latency now over that of the beginning; the smaller one of two samples.
    :param sentence: the same for people.
    """

    verdict: Verdict
    ratio: float
    sentence: str

    @property
    def slower(self) -> bool:
        return self.verdict is Verdict.SLOWER


def judge_drift(first_ms: float, now_ms: float, again_ms: float | None = None, factor: float = SLOWER) -> Drift:
    """Whether a device became slower by more than `factor`.

    :param first_ms: the anchor's latency when the session began.
    :param again_ms: a second sample, taken because the first was suspected; one alone is never believed.
    """
    now = now_ms if again_ms is None else min(now_ms, again_ms)
    ratio = now / first_ms
    times = f"the anchor takes {now:.3g} ms, {ratio:.2f} times its {first_ms:.3g} ms at the beginning"
    if ratio <= factor:
        return Drift(Verdict.STEADY, ratio, f"the device is as fast as it was: {times}")
    if again_ms is None:
        return Drift(Verdict.SUSPECTED, ratio, f"the device may have become slower: {times}")
    return Drift(Verdict.SLOWER, ratio, f"the device has become slower: {times} (two samples agree)")
