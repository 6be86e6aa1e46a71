"""Frames that a user interface drops on a machine, where it draws on the cores that inference works on: a closed form.

A frame wants `render_ms` of a core from one refresh of the screen to the next, T later. The kernel moves it to a core
that is free. Where inference is on all of them, with a thread on each, the frame shares one with such a thread; Linux
shares a core by weight, equally among threads of normal priority (sched(7), `sched_prio_to_weight` in the kernel). So
until the next refresh the frame gets T - (1 - share) * contended, and is late if contended time in there is more than

    patience = (T - render_ms) / (1 - share)

With equal weights a frame of up to T / 2 is never late.

Contended time comes in runs (a duty cycle idles behind every segment), which count as equally long, b = contended /
runs in every P = latency / runs. Frames begin uniformly in time. The window T of one holds j = floor(T / P) whole
periods and r = T - j P of another one, in which contended time is a trapezoid of where it begins, between
max(0, r + b - P) and min(b, r). For a = patience - j b, of every P

    bad = P where a is below the trapezoid, 0 where above, |b - r| + 2 (min(b, r) - a) between

is when a frame that begins will be late. It lets the next refresh pass as well: of x = bad / T refreshes in a row every
other one is dropped, floor(x / 2) + min(1, x mod 2), and of all refreshes no more than half.

Assumed: the interface is one thread and may use any core; what it takes from inference does not slow that down; other
programs are quiet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hetrl.condition import Ui
from hetrl.device_bridge.spec import Engine
from hetrl.device_bridge.surrogate.tables import Option

if TYPE_CHECKING:
    from hetrl.device_bridge.surrogate.cost_model import Schedules

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
NORMAL_WEIGHT, IDLE_WEIGHT = 1024, 3  # of threads at nice 0 and under SCHED_IDLE: kernel/sched/sched.h, core.c
EQUAL_SHARE = 0.5
SHARE_BESIDE_IDLE = NORMAL_WEIGHT / (NORMAL_WEIGHT + IDLE_WEIGHT)


@dataclass(frozen=True)
class Cores:
    """A machine's cores; those that the same processors work on are one kind, and a phone has none.

    :param covers: (C, P) whether a processor works on a kind.
    :param fills: (O,) whether an option works on all of them.
    :param works: (P, O) whether it is one of the option's processors.
    """

    covers: Bools
    fills: Bools
    works: Bools

    @staticmethod
    def of(engine: Engine, options: Sequence[Option]) -> Cores:
        processors = engine.processors
        found = sorted({core for p in processors for core in p.cores})
        kinds = dict.fromkeys(tuple(core in p.cores for p in processors) for core in found)
        covers = np.array(list(kinds), dtype=np.bool_).reshape(len(kinds), len(processors))
        works = np.array([[p in o.processors for o in options] for p in range(len(processors))])
        fills: Bools = np.all(covers.astype(np.int64) @ works > 0, axis=0)
        return Cores(covers, fills, works)

    def runs(self, batch: Schedules) -> Floats:
        """(B,) how often in an inference contended time ends: behind capped segments, and where a core gets free."""
        full = self.fills[batch.option]
        capped = np.zeros_like(full)
        for duty, works in zip(batch.duty, self.works, strict=True):
            capped |= works[batch.option] & (duty < 1)
        last = batch.end == np.arange(len(full))[:, None]
        ends = full & ((last & capped) | ~np.roll(full, -1, axis=0))
        counted: Floats = np.maximum(1.0, ends.sum(axis=0))
        return counted


def drop_rate(contended_ms: Floats, latency_ms: Floats, runs: Floats, ui: Ui, share: float = EQUAL_SHARE) -> Floats:
    """(B,) share of refreshes without a new frame; 0 for impossible schedules.

    :param contended_ms: (B,) of one inference, while it works on all cores.
    :param share: of a core, that a frame gets beside a thread of inference.
    """
    possible = np.isfinite(latency_ms) & (latency_ms > 0)
    period = np.where(possible, latency_ms, 1.0) / runs
    busy = np.minimum(np.where(possible, contended_ms, 0.0) / runs, period)
    window = ui.budget_ms
    whole = np.floor(window / period)
    rest = window - whole * period
    allowed = (window - ui.render_ms) / (1 - share) - whole * busy
    most, least = np.minimum(busy, rest), np.maximum(0.0, rest + busy - period)
    between = np.abs(busy - rest) + 2 * (most - allowed)
    bad = np.where(allowed >= most, 0.0, np.where(allowed < least, period, np.minimum(between, period)))
    refreshes = bad / window
    late = np.floor(refreshes / 2) + np.minimum(1.0, refreshes % 2)
    rate: Floats = np.minimum(0.5, late * window / period)
    return rate
