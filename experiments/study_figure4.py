"""Figure 4 (ResNet-50 on d1, competing processes) by a model with a fit of its own.

The figure's 19 ms are of a runtime that no device file has: its DSP is slower than TFLite's. So the figure has its own
numbers, as its runtime has. The CPU's and the GPU's time alone are the `tflite` engine set's, not fitted here. Fitted
are the DSP's time, to the 19 ms of fig4-a, and how each processor slows down beside competitors (linear in their
number), to the three numbers of fig4-e. Processors that share work do so in proportion to their speed and without a
cost: branches keep their widths under load, since these are the network's; CoDL divides anew.

What the device files say of the same figure is in docs/granularity.md, and beside each claim here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from study_bench import Finding, Verdict, agrees, answer, device, facts, fastest, graph, latency_ms

from hetrl.device_bridge.surrogate.conditions import study_effects
from hetrl.device_bridge.surrogate.tables import MAX_CHAIN

SHIPPED = Path(__file__).resolve().parent.parent / "docs" / "granularity.json"
PHONE, MODEL = "d1", "resnet50"
UNITS, PAIR = ("cpu", "gpu", "dsp"), ("cpu", "gpu")
FITTED_AT = 3  # competitors of fig4-e
COMPETITORS = (0, 1, 2, 3)


def together_ms(times: Iterable[float]) -> float:
    """Time of a whole that is divided by speed."""
    return 1 / sum(1 / ms for ms in times)


@cache
def alone_ms() -> dict[str, float]:
    """Each processor's time without competitors; the DSP's is what makes three branches take what fig4-a says."""
    told = {unit: latency_ms(PHONE, MODEL, f"tflite_{unit}", engine="tflite") for unit in PAIR}
    branches_ms = facts().numbers("fig4-a")[0]
    return {**told, "dsp": 1 / (1 / branches_ms - 1 / together_ms(told.values()))}


def growth(unit: str, competitors: int) -> float:
    """How many times as long a processor takes."""
    last = dict(zip(UNITS, facts().numbers("fig4-e"), strict=True))[unit]
    return 1 + (last - 1) * competitors / FITTED_AT


def loaded_ms(unit: str, competitors: int) -> float:
    return alone_ms()[unit] * growth(unit, competitors)


def branches_ms(units: Iterable[str], competitors: int) -> float:
    """Branches as wide as their processors are fast alone: the one that slows down most is waited for."""
    units = tuple(units)
    return together_ms(alone_ms()[unit] for unit in units) * max(growth(unit, competitors) for unit in units)


def codl_ms(competitors: int) -> float:
    """CPU and GPU share every operator, divided for the load."""
    return together_ms(loaded_ms(unit, competitors) for unit in PAIR)


def strategies(competitors: int) -> dict[str, float]:
    """Latency in ms of the figure's six."""
    return {
        "three branches": branches_ms(UNITS, competitors),
        "two branches": branches_ms(PAIR, competitors),
        "CoDL": codl_ms(competitors),
        **{unit.upper(): loaded_ms(unit, competitors) for unit in UNITS},
    }


def meeting_ms(competitors: int) -> float:
    """What it costs CPU and GPU to meet once: mapping and waiting as on d1, and a slice for each competitor."""
    engine = device(PHONE, MODEL, "mace").engine
    gpu = next(p.id for p in engine.processors if p.unit == "gpu")
    link = next(link for link in engine.links if link.accelerator == gpu)
    return link.map_ms.value + link.sync_ms.value + competitors * study_effects().competitor_slice_ms.value


def shipped(id_: str) -> str:
    """What the device files say of a claim, where that has been computed."""
    if not SHIPPED.exists():
        return ""
    told = {claim["id"]: claim for claim in json.loads(SHIPPED.read_text(encoding="utf-8"))["claims"]}
    return f" By the device files ({told[id_]['verdict']}): {told[id_]['ours']}." if id_ in told else ""


def fig4_a() -> Finding:
    free = strategies(0)
    won, dsp_ms = fastest(free), alone_ms()["dsp"]
    ours = (
        f"{won} are the fastest, {free['three branches']:.1f} ms; the next is {sorted(free, key=lambda s: free[s])[1]}"
    )
    tflite_ms = latency_ms(PHONE, MODEL, "tflite_dsp", engine="tflite")
    why = (
        f"That three processors that share without a cost beat two is arithmetic. The phone's DSP has to take "
        f"{dsp_ms:.0f} ms alone, where TFLite's takes {tflite_ms:.0f} ms in d1's file.{shipped('fig4-a')}"
    )
    holds = won == "three branches" and agrees(free[won], facts().numbers("fig4-a"))
    return answer("fig4-a", ours, holds, why, "the DSP's time, to this claim's 19 ms", by_fit=True)


def fig4_b() -> Finding:
    """Without sharing costs CoDL cannot lose to CPU or GPU; so it must also pay for as few meetings as it can have."""
    loaded = strategies(2)
    rivals = {name: ms for name, ms in loaded.items() if name != "CoDL"}
    best = fastest(rivals)
    room_ms, once_ms = rivals[best] - loaded["CoDL"], meeting_ms(2)
    meetings = math.ceil(len(graph(MODEL).groups) / MAX_CHAIN)
    ours = (
        f"CoDL {loaded['CoDL']:.0f} ms without sharing costs, {best} {rivals[best]:.0f} ms, three branches "
        f"{rivals['three branches']:.0f} ms; {meetings} meetings of CPU and GPU, the fewest that CoDL's chains allow, "
        f"cost CoDL {meetings * once_ms:.1f} ms more"
    )
    why = (
        f"CPU and GPU would have to meet in {room_ms / meetings:.1f} ms each time, beside 2 competitors; a meeting "
        f"takes {once_ms:.1f} ms if a thread waits {study_effects().competitor_slice_ms.value:.1f} ms for each "
        f"competitor, as fig4-e says of operators on the CPU.{shipped('fig4-b')}"
    )
    return answer("fig4-b", ours, room_ms > meetings * once_ms, why, "slow-downs beside competitors, to fig4-e")


def fig4_c() -> Finding:
    ratio = codl_ms(0) / branches_ms(UNITS, 0)
    wanted = facts().numbers("fig4-c")
    ours = f"{100 * (ratio - 1):+.0f} % ({codl_ms(0):.1f} ms, not fitted, over {branches_ms(UNITS, 0):.1f} ms)"
    return answer(
        "fig4-c",
        ours,
        agrees(ratio, [1 + number for number in wanted]),
        f"CoDL is taken to share at TFLite's rates, which TFLite itself cannot do.{shipped('fig4-c')}",
        "the denominator, to fig4-a; CoDL's latency to nothing",
    )


def fig4_d() -> Finding:
    """How often CPU and GPU would have to meet for the published ratio, and whether one processor can win."""
    (wanted, *_), loads = facts().numbers("fig4-d"), COMPETITORS[1:]
    saved = {n: loaded_ms("gpu", n) - codl_ms(n) for n in loads}
    enough = {n: saved[n] / meeting_ms(n) for n in loads}
    told = ", ".join(f"more than {enough[n]:.1f} times with {n}" for n in loads)
    return answer(
        "fig4-d",
        f"the GPU alone wins if CPU and GPU meet {told} competitors",
        Verdict.UNTESTED,
        "The study tells neither which time is scheduling nor in how many pieces the plan was. For a ratio of "
        f"{wanted} the phone's CPU and GPU would have to meet {wanted * enough[2]:.1f} times with 2 competitors."
        f"{shipped('fig4-d')}",
    )


def fig4_e() -> Finding:
    ours = ", ".join(f"{unit.upper()} {growth(unit, FITTED_AT):.1f}" for unit in UNITS)
    return answer(
        "fig4-e",
        ours,
        True,
        f"The form (linear in competitors) is assumed; that it meets these numbers shows nothing.{shipped('fig4-e')}",
        "all three, to this claim",
        by_fit=True,
    )
