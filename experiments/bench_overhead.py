"""What a search costs beside its measurements: time per evaluation, of which the device takes nothing.

    python experiments/bench_overhead.py                          all samplers, vgg16 on d1, 1,000 evaluations
    python experiments/bench_overhead.py --samplers tpe --repeats 3

The device answers every plan from a formula in no time, so that all that is left is the search itself with its
trial log and its Optuna journal on disk. Wall time and the processor's time are both given, since other programs slow
the first one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import hetrl
from hetrl import plugins
from hetrl.agents.base import AgentRun, Kind
from hetrl.agents.ledger import Ledger
from hetrl.agents.problem import Problem
from hetrl.agents.settings import configured, find_method
from hetrl.agents.trials import TrialLog
from hetrl.condition import Condition
from hetrl.device_bridge.base import MockDevice
from hetrl.device_bridge.registry import open_device
from hetrl.measurement import Measurement
from hetrl.objective import Objective
from hetrl.plan import Evidence, Plan

LIMITS = {"gp": 60}  # evaluations; its proposals are slow
LIMIT_MS = 10.0


def answer(plan: Plan, condition: Condition) -> Measurement:
    """A latency that depends on the plan alone."""
    latency_ms = 100 + int(plan.key[:6], 16) / 2**24 * 100 + 5 * len(plan.segments)
    return Measurement(evidence=Evidence.PREDICTED, latency_ms=latency_ms, peak_memory_mb=1.0)


def overhead(name: str, model: str, budget: int, folder: Path) -> tuple[int, float, float]:
    """Evaluations, and wall and processor time for each in ms; imports are not counted."""
    surrogate = open_device("d1", hetrl.load_model(model))
    problem = Problem.on(MockDevice(surrogate.spec, surrogate.graph, answer), Condition(), Objective())
    method = find_method(Kind.SAMPLER, name)
    settings = configured(method, name, budget, {})
    for part, evaluations in ((folder / "warm", 15), (folder / "run", budget)):
        part.mkdir()
        with TrialLog(part / "trials.jsonl", problem.header(), append=False) as log:
            ledger = Ledger(problem.space, problem.device, Condition(), Objective(), evaluations, log=log)
            ledger.measure(problem.cpu_plan(), "reference")
            ledger.reference_ms = problem.reference_ms
            wall, cpu = time.perf_counter(), time.process_time()
            method.propose(AgentRun(name, ledger, 0, part), settings)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    done = ledger.evaluations
    return done, 1000 * wall / done, 1000 * cpu / done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", nargs="+", default=list(plugins.names(Kind.SAMPLER.group)))
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=1, help="the fastest of so many runs counts")
    options = parser.parse_args()
    print("| sampler | evaluations | wall ms each | processor ms each | |")
    print("|---|---|---|---|---|")
    for name in options.samplers:
        runs = []
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as folder:
                budget = min(options.budget, LIMITS.get(name, options.budget))
                runs.append(overhead(name, options.model, budget, Path(folder)))
        done, wall_ms, cpu_ms = min(runs, key=lambda run: run[1])
        verdict = "" if wall_ms <= LIMIT_MS else f"over {LIMIT_MS:g} ms"
        print(f"| {name} | {done:,} | {wall_ms:.1f} | {cpu_ms:.1f} | {verdict} |", flush=True)


if __name__ == "__main__":
    main()
