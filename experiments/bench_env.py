"""How fast plans are evaluated, decided about and learnt from: d1, one core.

python experiments/bench_env.py            print docs/bench_env.md
python experiments/bench_env.py --write    write docs/bench_env.json, .md and, with matplotlib, .png
python experiments/bench_env.py --quick    shorter rounds and fewer sizes, for a first look

Each number is the best of several rounds: whatever else the machine does only takes time away.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hetrl.agents.problem import Problem
from hetrl.device_bridge.surrogate.accelerate import PACE, has_compiled
from hetrl.envs.device_core import DeviceCore
from hetrl.envs.evaluate import evaluate
from hetrl.objective import Objective
from hetrl.testing.models import random_decisions

DOCS = Path(__file__).resolve().parent.parent / "docs"
DEVICE, MODELS = "d1", ("vgg16", "resnet50", "retinaface")
ACCURACY_BUDGET_PCT = 5.0  # so that pruning ratios mix
SIZES, QUICK_SIZES = (1, 16, 64, 256, 1024, 2048, 8192), (1, 256, 2048)
PLANS_NEEDED, DECISIONS_NEEDED, RATIO_NEEDED = 300_000, 500_000, 18
AGENT_BUDGET = 100_000  # evaluations for which the agent's settings are chosen


@dataclass(frozen=True)
class Speed:
    """Plans evaluated and decisions taken per second, in batches of `size`."""

    model: str
    by: str
    size: int
    plans_per_s: float
    decisions_per_s: float


@dataclass(frozen=True)
class Training:
    """Environment steps per second of wall time, learning included."""

    settings: dict[str, Any]
    maskable_ppo: float
    cartpole_ppo: float

    @property
    def ratio(self) -> float:
        return self.maskable_ppo / self.cartpole_ppo


def problem(model: str) -> Problem:
    objective = Objective(max_accuracy_drop_pct=ACCURACY_BUDGET_PCT)
    return Problem.of(model, DEVICE, engine=None, condition="cold", objective=objective, input_shapes=None)


def best_s(work: Callable[[], float], at_least_s: float) -> float:
    """Shortest time that `work` says it took, in rounds that take some time together."""
    work()
    best, until = math.inf, time.perf_counter() + at_least_s
    while time.perf_counter() < until:
        best = min(best, work())
    return best


def evaluation_s(setting: Problem, size: int) -> Callable[[], float]:
    """A round: all outcomes of random legal plans."""
    taken = random_decisions(setting.space, 0, size)

    def work() -> float:
        began = time.perf_counter()
        evaluate(setting.space, setting.device, setting.condition, taken)
        return time.perf_counter() - began

    return work


def episode_s(setting: Problem, size: int) -> Callable[[], float]:
    """A round: an episode of random legal decisions, evaluated at its end; without the time of choosing them."""
    core, draw = DeviceCore(setting, size), np.random.default_rng(0)

    def work() -> float:
        began, choosing, finished = time.perf_counter(), 0.0, None
        core.reset()
        while finished is None:
            masks = core.masks()
            pause = time.perf_counter()
            actions = (draw.random(masks.shape, dtype=np.float32) * masks).argmax(axis=1)
            choosing += time.perf_counter() - pause
            _, _, finished = core.step(actions)
            core.observe()
        return time.perf_counter() - began - choosing

    return work


def speeds(model: str, sizes: tuple[int, ...], round_s: float) -> list[Speed]:
    setting = problem(model)
    found = []
    for by, spent_s in (("numpy", -math.inf), ("numba", math.inf)):
        PACE.numpy_s = spent_s  # what says which of the two evaluates
        if by == "numba" and not has_compiled():
            continue
        for size in sizes:
            plans = size / best_s(evaluation_s(setting, size), round_s)
            decisions = size * setting.space.length / best_s(episode_s(setting, size), round_s)
            found.append(Speed(model, by, size, round(plans), round(decisions)))
            print(f"{model} {by} {size}: {plans:,.0f} plans/s, {decisions:,.0f} decisions/s", flush=True)
    return found


def maskable_ppo_steps_per_s(evaluations: int) -> tuple[float, dict[str, Any]]:
    """What `hetrl train --agent maskable-ppo` does for a large budget, without seeds; and its settings."""
    import msgspec

    from hetrl.agents.base import AgentRun, Kind
    from hetrl.agents.ledger import Ledger
    from hetrl.agents.settings import configured, find_method

    setting = problem("vgg16")
    ledger = Ledger(setting.space, setting.device, setting.condition, setting.objective, evaluations)
    ledger.reference_ms = setting.reference_ms
    method = find_method(Kind.AGENT, "maskable-ppo")
    settings = configured(method, "maskable-ppo", AGENT_BUDGET, {})
    run = AgentRun("maskable-ppo", ledger, 0)
    began = time.perf_counter()
    method.propose(run, settings)
    return run.env_steps / (time.perf_counter() - began), msgspec.to_builtins(settings)


def cartpole_steps_per_s(steps: int) -> float:
    """stable-baselines3's PPO with its default settings in one environment."""
    from stable_baselines3 import PPO

    model = PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0)
    began = time.perf_counter()
    model.learn(steps)
    return model.num_timesteps / (time.perf_counter() - began)


def training(rounds: int, evaluations: int, steps: int) -> Training:
    """Both in turn, so that a busy machine slows them alike; the median of each."""
    import torch

    torch.set_num_threads(1)
    PACE.numpy_s = math.inf
    pairs = []
    for _ in range(rounds):
        ours, settings = maskable_ppo_steps_per_s(evaluations)
        pairs.append((ours, cartpole_steps_per_s(steps)))
        print(f"training: {pairs[-1][0]:,.0f} against {pairs[-1][1]:,.0f} steps/s", flush=True)
    ours, theirs = np.median(pairs, axis=0)
    return Training(settings, round(float(ours)), round(float(theirs)))


def verdict(found: float, needed: float) -> str:
    return f"{found:,.0f} (needed: {needed:,}{'' if found >= needed else '; MISSED'})"


def document(found: list[Speed], trained: Training) -> str:
    vgg16 = [s for s in found if s.model == "vgg16"]
    lines = [
        "# How fast the batched core is",
        "",
        f"Made by `python experiments/bench_env.py --write`: {DEVICE}, condition `cold`, accuracy budget "
        f"{ACCURACY_BUDGET_PCT:g} points, one core. Plans are random and legal: splits, pruning ratios, queue windows, "
        "kernel slices and caps mix. A plan's evaluation gives latency, frame drops, peak memory, energy, accuracy and "
        "each segment's time. Decisions per second are the environment's own: masks, steps, observations, and the "
        "evaluation at the end of each plan; choosing is left out. numpy and numba give the same bits. Each number "
        "is the best of several rounds.",
        "",
        f"- vgg16, plans per second: {verdict(max(s.plans_per_s for s in vgg16), PLANS_NEEDED)}",
        f"- vgg16, decisions per second: {verdict(max(s.decisions_per_s for s in vgg16), DECISIONS_NEEDED)}",
        f"- MaskablePPO against PPO on CartPole: {trained.ratio:.1f} times (needed: {RATIO_NEEDED}"
        f"{'' if trained.ratio >= RATIO_NEEDED else '; MISSED'})",
        "",
    ]
    for what, title in (("plans_per_s", "Plans per second"), ("decisions_per_s", "Decisions per second")):
        sizes = sorted({s.size for s in found})
        lines += [f"## {title}, by batch size", "", "| model | by | " + " | ".join(f"{n:,}" for n in sizes) + " |"]
        lines += ["|---" * (len(sizes) + 2) + "|"]
        for model, by in dict.fromkeys((s.model, s.by) for s in found):
            row = {s.size: getattr(s, what) for s in found if (s.model, s.by) == (model, by)}
            lines.append(f"| {model} | {by} | " + " | ".join(f"{row[n]:,.0f}" for n in sizes) + " |")
        lines.append("")
    settings = ", ".join(f"{name} {value:g}" for name, value in trained.settings.items())
    lines += [
        "## Training",
        "",
        "Environment steps per second of wall time, learning included, one thread each, in the same run; medians.",
        "",
        "| what | steps per second |",
        "|---|---|",
        f"| MaskablePPO, vgg16 on {DEVICE}, no seeds | {trained.maskable_ppo:,.0f} |",
        f"| stable-baselines3's PPO, default settings, CartPole-v1 | {trained.cartpole_ppo:,.0f} |",
        "",
        f"MaskablePPO's settings, those for large budgets: {settings}.",
        "",
    ]
    return "\n".join(lines)


def draw(found: list[Speed]) -> None:
    """Both speeds against batch size; nothing without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2))
    columns = (
        ("plans_per_s", "plans per second", PLANS_NEEDED),
        ("decisions_per_s", "decisions per second", DECISIONS_NEEDED),
    )
    for panel, (what, label, needed) in zip(panels, columns, strict=True):
        for model, by in dict.fromkeys((s.model, s.by) for s in found):
            row = [s for s in found if (s.model, s.by) == (model, by)]
            style = {"color": f"C{MODELS.index(model)}", "linestyle": "-" if by == "numba" else "--", "marker": "o"}
            panel.loglog([s.size for s in row], [getattr(s, what) for s in row], label=f"{model}, {by}", **style)
        panel.axhline(needed, color="grey", linewidth=0.8)
        panel.set_xlabel("batch size")
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / "bench_env.png", dpi=120, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    sizes, round_s = (QUICK_SIZES, 0.3) if options.quick else (SIZES, 2.0)
    found = [speed for model in MODELS for speed in speeds(model, sizes, round_s)]
    trained = training(*((1, 10_000, 10_240) if options.quick else (3, 30_000, 30_720)))
    text = document(found, trained)
    print(text)
    if options.write:
        kept = {"speeds": [asdict(s) for s in found], "training": asdict(trained)}
        (DOCS / "bench_env.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        (DOCS / "bench_env.md").write_text(text, encoding="utf-8")
        draw(found)


if __name__ == "__main__":
    main()
