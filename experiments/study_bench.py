"""What experiments/study.py measures with: cached devices and plans of the surrogate, the study's facts, its rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import cache
from pathlib import Path

import msgspec

import hetrl
from hetrl.agents.policies import find_policy
from hetrl.condition import parse_condition
from hetrl.device_bridge.registry import open_device
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.graph import OperatorGraph
from hetrl.measurement import Measurement
from hetrl.plan import Plan

TOLERANCE = 1.15
"""Numbers within this factor agree: the held-out errors of the surrogate are 10 to 14 % (docs/fidelity.md)."""
SHARE_LOST = TOLERANCE - 1  # what ignoring something must cost before it "must be considered"
PHONES = tuple(f"d{i}" for i in range(1, 9))
MODELS = (
    "yolov2", "vgg16", "posenet", "fst", "retinaface",
    "resnet18", "resnet34", "resnet50", "regnetx_1_6gf", "regnetx_4gf",
)  # fmt: skip
FIGURE_2_PHONES, FIGURE_2_MODELS = ("d1", "d7", "d2"), MODELS[:5]
SINGLE = ("mace_cpu", "mace_gpu_buffer", "mace_gpu_image")
SHARED = ("mulayer", "codl_buffer", "codl_image")
SIX = (*SINGLE, *SHARED)  # strategies of figure 2
GPU_ALONE = SINGLE[1:]
TABLE_3_POLICIES = {"mace_gpu": "mace_gpu_image", "codl_cpu_gpu": "codl_image"}


class Verdict(StrEnum):
    HOLDS = "holds"
    FAILS = "fails"
    UNTESTED = "cannot be tested"


class Claim(msgspec.Struct, frozen=True):
    """A claim of the study as published.

    :param numbers: what its text states as numbers: a ratio's range, or single values.
    """

    id: str
    text: str
    published: str
    numbers: tuple[float, ...]


class Table2Row(msgspec.Struct, frozen=True):
    method: str
    accuracy_pct: float
    memory_mb: float
    latency_ms: float
    speedup_pct: float | None


class Facts(msgspec.Struct, frozen=True):
    source: str
    claims: tuple[Claim, ...]
    table2: tuple[Table2Row, ...]

    def numbers(self, claim: str) -> tuple[float, ...]:
        return next(c.numbers for c in self.claims if c.id == claim)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of one claim or row.

    :param why: of one that does not hold: what would have to be true of the phone; else what to know of it.
    :param fitted: what of it was fitted, and to what; empty for nothing.
    :param by_fit: whether the published number itself was fitted, so that agreement with it shows nothing.
    """

    id: str
    published: str
    ours: str
    verdict: Verdict
    why: str = ""
    fitted: str = ""
    by_fit: bool = False


@cache
def facts() -> Facts:
    """The study's own numbers; they are compared with, never computed from, but where a `fitted` says so."""
    return msgspec.json.decode(Path(__file__).with_name("study_facts.json").read_bytes(), type=Facts)


@cache
def graph(model: str) -> OperatorGraph:
    return hetrl.load_model(model)


@cache
def device(phone: str, model: str, engine: str | None = None) -> SurrogateDevice:
    opened = open_device(phone, graph(model), engine)
    assert isinstance(opened, SurrogateDevice)
    return opened


@cache
def plan(phone: str, model: str, policy: str, engine: str | None = None) -> Plan:
    return find_policy(policy).plan(device(phone, model, engine))


@cache
def measured(phone: str, model: str, policy: str, condition: str = "cold", engine: str | None = None) -> Measurement:
    return device(phone, model, engine).measure(plan(phone, model, policy, engine), parse_condition(condition))


def latency_ms(phone: str, model: str, policy: str, condition: str = "cold", engine: str | None = None) -> float:
    """inf where the plan fails."""
    found = measured(phone, model, policy, condition, engine).latency_ms
    return float("inf") if found is None else found


def latencies_ms(
    phone: str, model: str, policies: Iterable[str] = SIX, condition: str = "cold", engine: str | None = None
) -> dict[str, float]:
    return {policy: latency_ms(phone, model, policy, condition, engine) for policy in policies}


def exact_ms(phone: str, model: str, condition: str, engine: str | None = None) -> float:
    """The plan that hetrl proves optimal for a condition."""
    found = hetrl.measure(model, phone, policy="exact", condition=condition, engine=engine).latency_ms
    assert found is not None
    return found


def fastest(times: dict[str, float]) -> str:
    return min(times, key=lambda policy: times[policy])


def agrees(value: float, published: Sequence[float]) -> bool:
    """Whether a value lies in a published range (or at a published value), give or take `TOLERANCE`."""
    return min(published) / TOLERANCE <= value <= max(published) * TOLERANCE


def verdict(holds: bool) -> Verdict:
    return Verdict.HOLDS if holds else Verdict.FAILS


def answer(
    id_: str, ours: str, holds: Verdict | bool, why: str = "", fitted: str = "", *, by_fit: bool = False
) -> Finding:
    """The finding of a claim."""
    claim = next(c for c in facts().claims if c.id == id_)
    word = holds if isinstance(holds, Verdict) else verdict(holds)
    return Finding(id=id_, published=claim.published, ours=ours, verdict=word, why=why, fitted=fitted, by_fit=by_fit)


def span(values: Iterable[float], digits: int = 2) -> str:
    low, high = min(values := list(values)), max(values)
    return f"{low:.{digits}f} to {high:.{digits}f}"


def pct(share: float) -> str:
    return f"{100 * share:.1f} %"
