"""Does a device change while a run lasts? One plan, measured again now and then, tells."""

from __future__ import annotations

from collections.abc import Callable

from hetrl.agents.problem import Problem
from hetrl.device_bridge.drift import Verdict, judge_drift
from hetrl.envs.evaluate import require_present

EVERY = 20  # evaluations between two looks


class Anchor:
    """The plan that leaves everything to the CPU, and how long it took in the beginning.

    Its measurements are no evaluations: no budget pays for them, and no log holds them.

    :param first_ms: its latency when the run began.
    :param tell: hears of every change.
    :ivar notes: what was told.
    """

    def __init__(self, problem: Problem, first_ms: float, tell: Callable[[str], None]) -> None:
        self.notes: list[str] = []
        self._problem = problem
        self._first_ms = first_ms
        self._tell = tell
        self._new = 0
        self._verdict = Verdict.STEADY

    def after(self, evaluations: int) -> None:
        """A new plan was measured, `evaluations` in all; every so often it is time to look."""
        self._new += 1
        if self._new % EVERY == 0:
            self.look(evaluations)

    def look(self, evaluations: int) -> None:
        """Measure the anchor, and tell if the device is no longer as it was at the last look.

        :raises DeviceFailed: the device went away.
        """
        now_ms = self._measure()
        if now_ms is None:
            return
        drift = judge_drift(self._first_ms, now_ms)
        if drift.verdict is Verdict.SUSPECTED:
            again_ms = self._measure()
            if again_ms is None:
                return
            drift = judge_drift(self._first_ms, now_ms, again_ms)
        if drift.verdict is not self._verdict:
            self._verdict = drift.verdict
            self._say(
                f"after {evaluations} evaluations {drift.sentence}; latencies from before and after the change cannot "
                "be compared, but the best plans are measured side by side in the end"
            )

    def _measure(self) -> float | None:
        measured = self._problem.device.measure(self._problem.cpu_plan(), self._problem.condition)
        require_present(measured, self._problem.device)
        if measured.error is not None:
            self._say(f"whether the device has become slower is not known: {measured.error.message}")
        return measured.latency_ms

    def _say(self, sentence: str) -> None:
        self.notes.append(sentence)
        self._tell(sentence)
