"""Band, registered for each of its schedulers; units are in `unit_subgraphs`, the plan in `band_rule`.

On an idle phone with one request, the four schedulers that plan by expected latency (SEL, HEFT, HEFT with reservation,
least slack) agree. They differ in who waits for whom when several requests are there: `hetrl tasks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hetrl.agents.policies.base import HandPolicy, Proposal

if TYPE_CHECKING:
    from hetrl.device_bridge.surrogate.device import SurrogateDevice


def _fixed(device: SurrogateDevice) -> Proposal:
    from hetrl.agents.policies.band_rule import fixed_schedule

    return Proposal(fixed_schedule(device), device.options)


def _round_robin(device: SurrogateDevice) -> Proposal:
    from hetrl.agents.policies.band_rule import round_robin_schedule

    return Proposal(round_robin_schedule(device), device.options)


def _shortest(device: SurrogateDevice) -> Proposal:
    from hetrl.agents.policies.band_rule import shortest_schedule

    return Proposal(shortest_schedule(device), device.options)


def _band(name: str, summary: str) -> HandPolicy:
    proposes = {"fixed": _fixed, "rr": _round_robin}
    return HandPolicy(
        id=f"band_{name}",
        family="band",
        granularity="subgraph",
        source="Jeong et al., Band, MobiSys'22; mrsnu/band",
        summary=summary,
        units=("cpu",),
        propose=proposes.get(name, _shortest),
    )


SHORTEST = "runs of unit subgraphs (7 operators or more) on the processors that end soonest by their profile"
band_fixed = _band("fixed", "the whole model on the processor that is fastest by its profile, the rest on the CPU")
band_rr = _band("rr", "the first idle processor takes the largest subgraph that it can; ignores how fast it is")
band_sel = _band("sel", f"{SHORTEST}; of several requests the longest goes first; ignores contention")
band_heft = _band("heft", f"{SHORTEST}; waits for a busy one if that ends sooner; ignores contention")
band_heft_reserved = _band("heft_reserved", f"{SHORTEST}; a request's next subgraph is reserved; ignores contention")
band_lst = _band("lst", f"{SHORTEST}; the least slack goes first, the late are dropped; ignores contention")
