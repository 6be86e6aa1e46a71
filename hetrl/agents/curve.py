"""The learning curve: the best latency so far after every evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hetrl.agents.ledger import Ledger
from hetrl.agents.trials import Trial


def curve_of(ledger: Ledger) -> list[tuple[Trial, float]]:
    """Each trial with the best latency (ms) of plans inside the budgets so far, inf before there was one."""
    best, curve = math.inf, []
    for trial in ledger.trials:
        if ledger.keeps(trial) and trial.latency_ms is not None:
            best = min(best, trial.latency_ms)
        curve.append((trial, best))
    return curve


def write_tensorboard(folder: Path, curve: Sequence[tuple[Trial, float]]) -> None:
    """Scalars for TensorBoard, where the extra `tensorboard` is installed; otherwise the CSV is all there is."""
    if find_spec("tensorboard") is None:
        return
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for trial, best in curve:
            if math.isfinite(best):
                writer.add_scalar("hetrl/best_latency_ms", best, trial.n + 1)
            if trial.latency_ms is not None:
                writer.add_scalar("hetrl/latency_ms", trial.latency_ms, trial.n + 1)
