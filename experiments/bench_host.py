"""Measurements until a plan is within 5 % of the best one, on a real machine whose whole plan space was recorded.

python experiments/bench_host.py --record     measure every plan of a small network here (about 40 minutes, one core);
                                              goes on where it was stopped
python experiments/bench_host.py --write      replay it: every method, ten seeds; writes docs/bench_host.md and .json;
                                              goes on where it was stopped

The recording is experiments/data/host_space.jsonl.gz: three processors that share cores, so that nothing can be split,
and a chain of six fusion groups, so that nothing runs side by side: 3^6 plans, each measured. Caps, which only cost
time here, are left out of the space for every method alike. So no method can ask for what was not measured.

A core of a shared machine changes its speed by up to two, for milliseconds or for minutes, as its neighbours like. So
every plan is measured in turns with one and the same other plan (whole, on ONNX Runtime), on one core, and a
measurement is the median of their ratios. That is done twice, in another order, and more often where the two differ
by over 3 %: of 729 plans, the one that looks best was else the one with the luckiest second. A plan counts with its
median measurement, times what the other plan usually takes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import onnx
from msgspec.structs import replace

import hetrl
from hetrl.agents.base import AgentRun, Kind
from hetrl.agents.ledger import Ledger
from hetrl.agents.problem import Problem
from hetrl.agents.settings import configured, find_method
from hetrl.condition import AT_REST
from hetrl.device_bridge.host import device as host_device
from hetrl.device_bridge.recording import Recorded, Recorder, RecordingHeader, read_recording, replay
from hetrl.device_bridge.runner.sampling import Sampling
from hetrl.device_bridge.spec import DeviceSpec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.enumerate import Enumeration, Restriction, enumerate_plans
from hetrl.envs.setting import Setting
from hetrl.envs.space import Decision, PlanSpace
from hetrl.graph import OperatorGraph
from hetrl.objective import Objective
from hetrl.profiling import ANY_OUTPUT, whole_plans
from hetrl.zoo.builder import Builder

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "bench_host"
RECORDING = ROOT / "experiments" / "data" / "host_space.jsonl.gz"
LOG = ROOT / "runs" / "bench_host" / "outcomes.jsonl"
PROCESSORS = ("cpu/onnxruntime/fp32", "cpu/openvino/fp32", "cpu/ncnn/fp32")
METHODS = (
    ("auto", Kind.AGENT),
    ("maskable-ppo", Kind.AGENT),
    ("tpe", Kind.SAMPLER),
    ("annealing", Kind.SAMPLER),
    ("random", Kind.SAMPLER),
)
WITHIN = 0.05
SEEDS = 10
BUDGET = 729  # every plan there is
MOST_SAME = 0.99  # of the recorded plans must have numbers
TIMES = 6  # that a plan is measured at most undisturbed: until two measurements agree
AGREED = 0.03
CORE = 0  # that is measured on, where there are several
IN_TURNS = Sampling(
    max_warmup_s=0.3, max_warmup_runs=4, max_s=0.3, min_repeats=7, max_repeats=15, relative_width=0.01
)  # max_s is per plan, and there are two
DIGITS = 5


class UncappedSpace(PlanSpace):
    """A plan space without caps, queue windows and kernel slices."""

    @cached_property
    def globals(self) -> tuple[Decision, ...]:
        first, *others = super().globals
        return (first, *(Decision(d.name, d.choices[:1]) for d in others))


class UncappedProblem(Problem):
    """A problem over such a space."""

    @cached_property
    def space(self) -> PlanSpace:
        return UncappedSpace(self.planner, self.objective)


@dataclass(frozen=True)
class Outcome:
    """One run.

    :param needed: measurements until the first plan within 5 % of the best one; None if it never came.
    """

    method: str
    seed: int
    seeded: bool
    needed: int | None
    evaluations: int
    best_ms: float
    wall_s: float


def network(path: Path) -> Path:
    """A chain of six fusion groups of kinds at which different engines are best, as an ONNX file without weights."""
    net = Builder("six")
    x = net.input("x", (1, 3, 56, 56))
    x = net.activation(net.conv(x, "stem", 256, 3, stride=2), "stem.relu")
    x = net.activation(net.conv(x, "dense", 256, 3), "dense.relu")
    x = net.activation(net.conv(x, "soft", 256, 3), "soft.softplus", "Softplus")
    x = net.activation(net.conv(x, "deep", 256, 15, groups=256), "deep.relu")
    x = net.activation(net.conv(x, "large", 128, 5), "large.relu")
    x = net.activation(net.conv(x, "reduced", 256, 3, stride=2), "reduced.relu")
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(net.finish(x).model, path)
    return path


def reduced(spec: DeviceSpec, engine: str) -> DeviceSpec:
    """The device with the recorded processors alone, the first of them in the place of the host."""
    here = spec.engine(engine)
    processors = tuple(p for p in here.processors if p.id in PROCESSORS)
    links = tuple(
        replace(link, host=PROCESSORS[0], splits=False) for link in here.links if link.accelerator in PROCESSORS[1:]
    )
    return replace(spec, engines={engine: replace(here, processors=processors, links=links)}, default_engine=engine)


def record() -> None:
    """Measure the whole space here, or what of it is missing, and keep it compressed."""
    os.sched_setaffinity(0, {CORE})
    host_device.DUEL = IN_TURNS
    model, file = network(RUNS / "six.onnx"), RUNS / "host_space.jsonl"
    setting = Setting.of(
        str(model), "host", engine="host", condition=str(AT_REST), objective=ANY_OUTPUT, input_shapes=None,
        seeded_weights=0,
    )  # fmt: skip
    within = Restriction(processors=PROCESSORS, splits=False, overlap=False)
    plans = list(enumerate_plans(setting.space, BUDGET, within))
    anchor = whole_plans(setting.space)[PROCESSORS[0]]
    with Recorder(setting.device, file) as recorder:
        for number in range(TIMES):
            known = measured_pairs(read_recording(file)[1], anchor.key)
            order = np.random.default_rng(number).permutation(len(plans))
            ahead = [plans[i] for i in order if not settled(known.get(plans[i].key, []))]
            for done, plan in enumerate(ahead, 1):
                answer, _ = recorder.compare([plan, anchor], AT_REST)
                if done % 50 == 0:
                    print(f"{done} of {len(ahead)}, the last one {answer.latency_ms} ms", flush=True)
    compress(file, RECORDING, anchor.key)


@dataclass(frozen=True)
class Pair:
    """A plan and the one that all are measured in turns with.

    :ivar ratio: median over their rounds; None where one of them has no latency, or they were not in turns.
    """

    plan: Recorded
    anchor: Recorded

    @cached_property
    def ratio(self) -> float | None:
        mine, its = self.plan.measurement, self.anchor.measurement
        if mine.latency_ms is None or len(mine.samples_ms) != len(its.samples_ms):
            return None
        return statistics.median(one / other for one, other in zip(mine.samples_ms, its.samples_ms, strict=True))


def measured_pairs(records: Sequence[Recorded], anchor_key: str) -> dict[str, list[Pair]]:
    """By plan; what other programs disturbed is left out, and a plan whose anchor a kill left out."""
    found: dict[str, list[Pair]] = {}
    number = 0
    while number + 1 < len(records):
        plan, anchor = records[number : number + 2]
        if anchor.plan.key != anchor_key:
            number += 1
            continue
        number += 2
        if not (plan.measurement.foreign_load or anchor.measurement.foreign_load):
            found.setdefault(plan.plan.key, []).append(Pair(plan, anchor))
    return found


def agreed(pairs: Sequence[Pair]) -> bool:
    """Whether two measurements of a plan say the same."""
    ratios = sorted(pair.ratio for pair in pairs if pair.ratio is not None)
    return any(more <= (1 + AGREED) * less for less, more in pairwise(ratios))


def settled(pairs: Sequence[Pair]) -> bool:
    """Whether a plan need not be measured again."""
    return len(pairs) >= TIMES or agreed(pairs) or sum(pair.ratio is None for pair in pairs) > 1


def compress(file: Path, target: Path, anchor_key: str) -> None:
    """One record a plan, times with five digits, the rest left out: enough to replay, small enough to keep.

    :param file: pairs of records, of a plan and of the one that all are measured in turns with.
    """
    header, records = read_recording(file)
    known = measured_pairs(records, anchor_key)
    usual_ms = statistics.median(
        p.anchor.measurement.latency_ms for pairs in known.values() for p in pairs if p.anchor.measurement.latency_ms
    )
    print(f"{sum(map(agreed, known.values()))} of {len(known)} plans have two measurements within {100 * AGREED:.0f} %")
    lines = [msgspec.json.encode(header), *(msgspec.json.encode(slim(pairs, usual_ms)) for pairs in known.values())]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(b"\n".join(lines) + b"\n", mtime=0))
    print(f"wrote {target.relative_to(ROOT)}, {target.stat().st_size / 1e3:.0f} kB")


def slim(pairs: Sequence[Pair], usual_ms: float) -> Recorded:
    """A plan with the latency that its median ratio makes; the timeline next to that is stretched to it."""
    timed = sorted((pair for pair in pairs if pair.ratio is not None), key=lambda pair: pair.ratio or 0.0)
    if not timed:
        return pairs[0].plan
    latency_ms = usual_ms * statistics.median(pair.ratio or 0.0 for pair in timed)
    record = timed[len(timed) // 2].plan
    measured = record.measurement
    scale = latency_ms / max(s.end_ms for s in measured.segments)
    timeline = tuple(
        replace(
            s,
            start_ms=digits(scale * s.start_ms),
            end_ms=digits(scale * s.end_ms),
            transfer_ms=digits(scale * s.transfer_ms),
        )
        for s in measured.segments
    )
    error = None if measured.output_error is None else digits(measured.output_error)
    small = replace(
        measured, latency_ms=digits(latency_ms), latency_interval_ms=None, samples_ms=(), utilization=(),
        segments=timeline, output_error=error,
    )  # fmt: skip
    return replace(record, measurement=small)


def digits(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


@cache
def recorded(path: Path) -> tuple[RecordingHeader, tuple[Recorded, ...], OperatorGraph]:
    """The recording, with the graph of its model."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "recording.jsonl"
        plain.write_bytes(gzip.decompress(path.read_bytes()))
        header, records = read_recording(plain)
        graph = hetrl.load_model(str(network(Path(folder) / "six.onnx")))
    return replace(header, spec=reduced(header.spec, header.engine)), tuple(records), graph


def problem(path: Path) -> UncappedProblem:
    """The recorded machine, to be planned for with what was assumed of it when it was recorded."""
    header, records, graph = recorded(path)
    device = replay(header, records, graph)
    planner = SurrogateDevice(header.spec, graph, header.engine)
    return UncappedProblem(device, planner, AT_REST, Objective())


def check(path: Path) -> tuple[int, float]:
    """How many plans there are and the best latency in ms.

    :raises SystemExit: some plan of the space was not recorded.
    """
    found = problem(path)
    plans = list(Enumeration(found.space))
    answers = [found.device.measure(plan, AT_REST) for plan in plans]
    times = [a.latency_ms for a in answers if a.latency_ms is not None]
    if len(times) < MOST_SAME * len(plans):
        raise SystemExit(f"{len(plans) - len(times)} of {len(plans)} plans have no numbers: record again")
    return len(plans), min(times)


class Reached(Exception):
    """A run has found what it was to find."""


def run(path: Path, best_ms: float, method: str, kind: Kind, seed: int, seeded: bool) -> Outcome:
    """One method, until it is there, has measured every plan, or has no more to propose."""
    begin, task = time.monotonic(), problem(path)
    goal = (1 + WITHIN) * best_ms

    def stop(done: int, found_ms: float | None) -> None:
        if found_ms is not None and found_ms <= goal:
            raise Reached

    ledger = Ledger(task.space, task.device, task.condition, task.objective, BUDGET, update=stop)
    with suppress(Reached):
        for name, plan in [*(task.candidates if seeded else []), ("reference", task.cpu_plan())]:
            ledger.measure(plan, name)
        ledger.reference_ms = task.reference_ms
        found = find_method(kind, method)
        found.propose(AgentRun(method, ledger, seed, None), configured(found, method, BUDGET, {}))
    times = [np.inf if t.latency_ms is None else t.latency_ms for t in ledger.trials]
    needed = next((n for n, ms in enumerate(times, 1) if ms <= goal), None)
    return Outcome(method, seed, seeded, needed, len(times), min(times), time.monotonic() - begin)


def all_outcomes(
    path: Path, best_ms: float, methods: Sequence[tuple[str, Kind]], seeds: int, jobs: int, log: Path | None = None
) -> list[Outcome]:
    """Every method with every seed, with seeds and without.

    :param log: keeps what is done: the same call goes on where an earlier one of this recording was stopped.
    """
    wanted = [(m, kind, seed, seeded) for seeded in (False, True) for m, kind in methods for seed in range(seeds)]
    key = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    lines = [] if log is None or not log.exists() else [json.loads(line) for line in log.read_text().splitlines()]
    known = [Outcome(**line["outcome"]) for line in lines if line["recording"] == key]
    done = {(o.method, o.seed, o.seeded): o for o in known}
    with ProcessPoolExecutor(jobs) as pool:
        running = [
            pool.submit(run, path, best_ms, m, kind, seed, seeded)
            for m, kind, seed, seeded in wanted
            if (m, seed, seeded) not in done
        ]
        for future in as_completed(running):
            outcome = future.result()
            done[outcome.method, outcome.seed, outcome.seeded] = outcome
            if log is not None:
                log.parent.mkdir(parents=True, exist_ok=True)
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"recording": key, "outcome": asdict(outcome)}) + "\n")
                print(f"{len(done)} of {len(wanted)}: {outcome}", flush=True)
    return [done[m, seed, seeded] for m, _, seed, seeded in wanted]


def markdown(outcomes: Sequence[Outcome], plans: int, best_ms: float, header: RecordingHeader) -> str:
    """The document."""
    lines = [
        "# Measurements until a plan is good, on a real machine",
        "",
        "Made by `python experiments/bench_host.py --write` from `experiments/data/host_space.jsonl.gz`: all "
        f"{plans} plans of a chain of six fusion groups on {', '.join(PROCESSORS)} of one core of a {header.spec.soc}.",
        "Each was measured in turns with the whole model in ONNX Runtime, and counts with the median of their ratios.",
        f"The best takes {best_ms:.3g} ms. A cell is how many plans were measured up to the first within",
        f"{100 * WITHIN:.0f} % of it: median, and least to most of the seeds.",
        "",
        "`no seeds`: the first plan is the whole model on the CPU, then each method is on its own. `seeds`: hand",
        "policies and the exact plan of the uncorrected surrogate come first, the same for all.",
        "",
        "| method | no seeds | seeds |",
        "|---|---|---|",
    ]
    for method in dict.fromkeys(o.method for o in outcomes):
        cells = [cell([o for o in outcomes if (o.method, o.seeded) == (method, seeded)]) for seeded in (False, True)]
        lines.append(f"| {method} | {cells[0]} | {cells[1]} |")
    lines += ["", *(verdict(outcomes, seeded) for seeded in (False, True)), ""]
    return "\n".join(lines)


def needs(outcomes: Sequence[Outcome]) -> list[float]:
    """Measurements of each run; infinitely many where it never got there."""
    return [np.inf if o.needed is None else float(o.needed) for o in outcomes]


def cell(outcomes: Sequence[Outcome]) -> str:
    values = needs(outcomes)
    middle, low, high = (
        f"{v:.0f}" if np.isfinite(v) else "never" for v in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({low}-{high})"


def verdict(outcomes: Sequence[Outcome], seeded: bool) -> str:
    """Whether `auto` needs at most half of TPE's measurements."""
    medians = {
        m: statistics.median(needs([o for o in outcomes if (o.method, o.seeded) == (m, seeded)]))
        for m in ("auto", "tpe")
    }
    told = "With seeds" if seeded else "Without seeds"
    word = "at most" if medians["auto"] <= medians["tpe"] / 2 else "more than"
    return f"{told}, `auto` needs {word} half of TPE's measurements ({medians['auto']:.0f} to {medians['tpe']:.0f}).  "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="measure instead of replaying")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.record:
        record()
        return
    plans, best_ms = check(RECORDING)
    outcomes = all_outcomes(RECORDING, best_ms, METHODS, options.seeds, options.jobs, LOG)
    text = markdown(outcomes, plans, best_ms, recorded(RECORDING)[0])
    print(text)
    if options.write:
        (ROOT / "docs" / "bench_host.md").write_text(text, encoding="utf-8")
        rows = [asdict(o) | {"wall_s": round(o.wall_s, 1)} for o in outcomes]
        (ROOT / "docs" / "bench_host.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
