"""Tables 2, 3 and 4 of the study, and what fusion, buffer reuse and frame reuse do to other networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import msgspec
import numpy as np
from study_bench import (
    MODELS,
    TABLE_3_POLICIES,
    TOLERANCE,
    Finding,
    Table2Row,
    Verdict,
    agrees,
    device,
    facts,
    graph,
    latency_ms,
    pct,
    plan,
    verdict,
)

from hetrl.accuracy import MEASURED_RATIO, predicted_accuracy_drop_pct
from hetrl.agents.policies import find_policy
from hetrl.calibration.conditions import leave_one_model_out, profiles
from hetrl.calibration.engine_sets import fits
from hetrl.compress.channels import pruned
from hetrl.condition import parse_condition
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import DeviceSpec, RooflineCost, load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.graph import OperatorGraph
from hetrl.graph.fusion import fuse
from hetrl.graph.reader import graph_from_model
from hetrl.graph.shapes import type_graph
from hetrl.optimize.fusion import Decision, Dnnfusion, kernels, pair_decisions, unfused
from hetrl.optimize.low_rank import low_rank, low_rank_drop_pct
from hetrl.optimize.memory import allocate, lifetimes
from hetrl.optimize.reuse import Reuse, ReuseFit, by_group, steps_ms, stream_ms, study_rows
from hetrl.zoo.networks import blueprint

ONE_THREAD = "sd855_nnmeter:1"  # nn-Meter's one-thread CPU of a Snapdragon 855 in the fit of TFLite's rows
ENGINES = ("mace", "tflite", "tflite, one thread")


@dataclass(frozen=True)
class Method:
    """What a row of Table 2 switches on."""

    name: str
    low_rank: bool = False
    pruned: bool = False
    codl: bool = False
    fused: bool = False
    arena: bool = False


METHODS = (
    Method("baseline"),
    Method("low_rank", low_rank=True),
    Method("pruning", pruned=True),
    Method("codl", codl=True),
    Method("fusion", fused=True),
    Method("codl+low_rank", codl=True, low_rank=True),
    Method("codl+pruning", codl=True, pruned=True),
    Method("codl+pruning+fusion+memory_allocation", codl=True, pruned=True, fused=True, arena=True),
)


def kept_weights() -> float:
    """The share of each kernel that low-rank leaves: fitted, so that the weights shrink as the memory column does."""
    rows = {row.method: row for row in facts().table2}
    wanted = rows["low_rank"].memory_mb / rows["baseline"].memory_mb
    whole = graph("resnet18").weight_bytes
    low, high = 0.01, 0.99
    for _ in range(12):
        middle = (low + high) / 2
        size = graph_from_model(low_rank(blueprint("resnet18"), middle).model, name="resnet18").weight_bytes
        low, high = (low, middle) if size / whole > wanted else (middle, high)
    return low


@cache
def variant(method: Method) -> OperatorGraph:
    """ResNet-18 as a row has it."""
    network = blueprint("resnet18")
    if method.low_rank:
        network = low_rank(network, kept_weights())
    found = graph_from_model(network.model, name="resnet18", grouping=Dnnfusion() if method.fused else unfused)
    return pruned(found, MEASURED_RATIO) if method.pruned else found


def spec_of(engine: str) -> tuple[DeviceSpec, str]:
    """d1 with an engine set of `ENGINES`."""
    spec = load_spec("d1")
    if engine != ENGINES[2]:
        return spec, engine
    rates = {
        name: Quantity(value, Source.FITTED, ONE_THREAD)
        for name, value in fits().numbers["tflite"]["cpu"][ONE_THREAD].items()
    }
    old = spec.engine("tflite")
    cpu = next(p for p in old.processors if p.unit == "cpu")
    one = msgspec.structs.replace(cpu, cost=RooflineCost(**rates))
    new = msgspec.structs.replace(old, processors=tuple(one if p is cpu else p for p in old.processors))
    return msgspec.structs.replace(spec, engines={**spec.engines, "tflite": new}), "tflite"


@cache
def table_2_ms(method: Method, engine: str) -> float | None:
    """Latency of a row; None where the engine set cannot split operators."""
    spec, name = spec_of(engine)
    if method.codl and name != "mace":
        return None
    on = SurrogateDevice(spec, variant(method), name)
    policy = "codl_image" if method.codl else f"{name}_cpu"
    return on.measure(find_policy(policy).plan(on), parse_condition("cold")).latency_ms


def weights_mb(method: Method) -> float:
    return variant(method).weight_bytes / 1e6


def arena_mb(method: Method) -> float:
    """Activations: reused where the row says so, else each tensor's own memory."""
    arena = allocate(lifetimes(variant(method)))
    return (arena.peak_bytes if method.arena else arena.sum_bytes) / 1e6


@dataclass(frozen=True)
class Table2Found:
    """A row beside ours: latency factors to the baseline's, by engine set."""

    row: Table2Row
    method: Method
    factors: dict[str, float]
    finding: Finding

    @property
    def published_factor(self) -> float:
        return self.row.latency_ms / facts().table2[0].latency_ms


def table_2() -> list[Table2Found]:
    found = []
    for row, method in zip(facts().table2, METHODS, strict=True):
        assert row.method == method.name
        factors = {}
        for engine in ENGINES:
            took, base = table_2_ms(method, engine), table_2_ms(METHODS[0], engine)
            if took is not None and base is not None:
                factors[engine] = took / base
        found.append(Table2Found(row, method, factors, _table_2_finding(row, method, factors)))
    return found


def _table_2_finding(row: Table2Row, method: Method, factors: dict[str, float]) -> Finding:
    base = facts().table2[0]
    factor = row.latency_ms / base.latency_ms
    if method == METHODS[0]:
        took = {engine: table_2_ms(method, engine) for engine in ENGINES}
        one_thread = took[ENGINES[2]]
        ours = ", ".join(f"{engine} {ms:.0f} ms" for engine, ms in took.items() if ms is not None)
        return Finding(
            id=row.method,
            published=f"{row.latency_ms} ms",
            ours=ours,
            verdict=verdict(one_thread is not None and agrees(one_thread, [row.latency_ms])),
            why="The level is that of one CPU thread; four threads are far below.",
        )
    ours = ", ".join(f"x {value:.2f} ({engine})" for engine, value in factors.items())
    holds = bool(factors) and all(agrees(value, [factor]) for value in factors.values())
    fitted = {
        "low_rank": "the rank, to the memory column, and the accuracy, to that of low rank alone",
        "pruning": "the share of channels and the accuracy, to this row's memory and accuracy",
    }
    parts = [text for key, text in fitted.items() if key in row.method]
    return Finding(
        id=row.method,
        published=f"x {factor:.3f}",
        ours=ours,
        verdict=verdict(holds),
        why="" if holds else _why_not(method, factor),
        fitted="; ".join(parts),
    )


def _why_not(method: Method, factor: float) -> str:
    """What would have to be true of the phone, from the published numbers and our counts."""
    base = facts().table2[0].latency_ms
    gone = kernels(variant(METHODS[0])) - kernels(variant(Method("fusion", fused=True)))
    if method.name == "fusion":
        ours = (table_2_ms(METHODS[0], "mace") or 0.0) - (table_2_ms(method, "mace") or 0.0)
        return (
            f"Each of the {gone} kernels that vanish would have to cost {base * (1 - factor) / gone:.2f} ms; on d1's "
            f"CPU under mace it costs {ours / gone:.2f} ms, mostly memory traffic."
        )
    if method.name == "pruning":
        share = variant(method).macs / variant(METHODS[0]).macs
        return (
            f"Pruning leaves {share:.2f} of the work; {pct((factor - share) / (1 - share))} of the phone's latency "
            "would have to be independent of the work, such as a cost per operator."
        )
    if method.name == "low_rank":
        share = variant(method).macs / variant(METHODS[0]).macs
        extra = kernels(variant(method)) - kernels(variant(METHODS[0]))
        cost = (factor - share) / extra * base
        return (
            f"Low rank leaves {share:.2f} of the work; each of {extra} added kernels would have to cost {cost:.1f} ms."
        )
    if method.name == "codl+low_rank":
        alone = {row.method: row.latency_ms for row in facts().table2}
        return (
            f"The phone would have to gain {alone['low_rank'] - alone[method.name]:.0f} ms by sharing the smaller "
            f"network and {alone['baseline'] - alone['codl']:.0f} ms by sharing the whole one: inconsistency (a) below."
        )
    cpu, both = (latency_ms("d1", "resnet18", policy) for policy in ("mace_cpu", "codl_image"))
    return (
        f"Sharing would have to gain {pct(1 - facts().table2[3].latency_ms / base)} alone, as with a GPU that is much "
        f"slower than the CPU; d1's CPU and GPU together are {cpu / both:.1f} times as fast as four threads under mace."
    )


def table_2_memory() -> list[tuple[Table2Row, float, float, Verdict, float]]:
    """(row, weights MB, activations MB, verdict on the weights, predicted accuracy %)."""
    rows = []
    for row, method in zip(facts().table2, METHODS, strict=True):
        size = weights_mb(method)
        drop = predicted_accuracy_drop_pct(MEASURED_RATIO if method.pruned else 0.0)
        if method.low_rank:
            drop += low_rank_drop_pct(size / weights_mb(METHODS[0]))
        accuracy = facts().table2[0].accuracy_pct - drop
        rows.append((row, size, arena_mb(method), verdict(agrees(size, [row.memory_mb])), accuracy))
    return rows


@dataclass(frozen=True)
class Table3Found:
    """A row of Table 3: five published latencies, the surrogate's, and held-out errors of the four shifted ones."""

    model: str
    method: str
    published_ms: tuple[float, ...]
    ours_ms: tuple[float, ...]
    held_out: tuple[float, ...]

    @property
    def verdict(self) -> Verdict:
        return verdict(float(np.mean(np.abs(self.held_out))) <= TOLERANCE - 1)

    @property
    def why(self) -> str:
        """What would have to be true of the phone, cell by cell."""
        off = [
            f"{1 + e:.2f} times its published latency under sigma{i}"
            for i, e in enumerate(self.held_out, 1)
            if abs(e) > TOLERANCE - 1
        ]
        return f"The phone would have to take {' and '.join(off)}." if self.verdict is Verdict.FAILS else ""

    @property
    def finding(self) -> Finding:
        def told(values: Sequence[float]) -> str:
            return ", ".join(f"{value:.0f}" for value in values) + " ms"

        return Finding(
            id=f"{self.model}, {self.method}",
            published=told(self.published_ms),
            ours=told(self.ours_ms),
            verdict=self.verdict,
            why=self.why,
            fitted="sigma0 by one number and the others by six, to all of Table 3; the verdict is of held-out errors",
        )


def table_3() -> list[Table3Found]:
    found = []
    for profile, errors in leave_one_model_out(profiles(load_spec("d1").engine("mace"))):
        method = "codl_cpu_gpu" if profile.shared else "mace_gpu"
        ours = tuple(latency_ms("d1", profile.model, TABLE_3_POLICIES[method], f"sigma{i}") for i in range(5))
        found.append(Table3Found(profile.model, method, profile.measured_ms, ours, tuple(errors.tolist())))
    return found


def table_4() -> list[Finding]:
    plain, first, second = study_rows()
    fit = ReuseFit.to(plain, first)

    def told(latency: float, vmaf: float) -> str:
        return f"{latency:.1f} ms, VMAF {vmaf:.0f}"

    findings = [
        Finding(
            id=f"{row.reuse.frames}, {row.reuse.layers}",
            published=told(row.latency_ms, row.vmaf),
            ours=told(fit.latency_ms(row.reuse), fit.vmaf(row.reuse)),
            verdict=Verdict.HOLDS,
            fitted=what,
            by_fit=True,
        )
        for row, what in ((plain, "the curve's start, to this row"), (first, "both numbers, to this row"))
    ]
    ours = fit.latency_ms(second.reuse), fit.vmaf(second.reuse)
    saved, lost = (1 - ours[0] / plain.latency_ms, 1 - ours[1] / plain.vmaf)
    holds = agrees(saved, [1 - second.latency_ms / plain.latency_ms]) and agrees(lost, [1 - second.vmaf / plain.vmaf])
    return [
        *findings,
        Finding(
            id="2, 2", published=told(second.latency_ms, second.vmaf), ours=told(*ours), verdict=verdict(holds),
            why=f"Saved {pct(saved)}, lost {pct(lost)}; these shares are compared, not what is left. Network, "
            "plan and video are not named.",
            fitted="two numbers, to row (1, 1); the curve's form, with this row in sight",
        ),
    ]  # fmt: skip


@dataclass(frozen=True)
class Layers:
    """One network: kernels under four groupings, neighbours by decision, latency factors of fusion, memory."""

    model: str
    kernels: tuple[int, int, int]
    pairs: dict[Decision, int]
    factors: tuple[float, float]
    arena_mb: tuple[float, float, float]
    saved: tuple[float, float]


def layers(models: Sequence[str] = MODELS) -> list[Layers]:
    """The layers on top of plans, on d1 under mace."""
    return [_layers(model) for model in models]


def _layers(model: str) -> Layers:
    onnx_model = blueprint(model).model
    alone, rule = (graph_from_model(onnx_model, name=model, grouping=g) for g in (unfused, Dnnfusion()))
    usual = graph_from_model(onnx_model, name=model, grouping=fuse)
    factors = []
    for policy in ("mace_cpu", "mace_gpu_image"):
        on = SurrogateDevice(load_spec("d1"), alone, "mace")
        slow = on.measure(find_policy(policy).plan(on), parse_condition("cold")).latency_ms
        assert slow is not None
        factors.append(latency_ms("d1", model, policy) / slow)
    arena = allocate(lifetimes(usual))
    cut = by_group(plan("d1", model, "codl_image"), usual)
    steps = steps_ms(device("d1", model).measure(cut, parse_condition("cold")).segments)
    return Layers(
        model=model,
        kernels=(kernels(alone), kernels(rule), kernels(usual)),
        pairs=dict(pair_decisions(type_graph(onnx_model, {}, model, None).operators)),
        factors=(factors[0], factors[1]),
        arena_mb=(arena.peak_bytes / 1e6, arena.bound_bytes / 1e6, arena.sum_bytes / 1e6),
        saved=(1 - stream_ms(steps, Reuse(1, 1)) / sum(steps), 1 - stream_ms(steps, Reuse(2, 2)) / sum(steps)),
    )
