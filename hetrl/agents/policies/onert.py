"""onert's HEFT scheduler, registered; its rule is in `onert_rule`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hetrl.agents.policies.base import HandPolicy, Proposal

if TYPE_CHECKING:
    from hetrl.device_bridge.surrogate.device import SurrogateDevice


def _propose(device: SurrogateDevice) -> Proposal:
    from hetrl.agents.policies.onert_rule import onert_schedule

    return Proposal(onert_schedule(device.cost_model()), device.options)


onert_heft = HandPolicy(
    id="onert_heft",
    family="onert",
    granularity="inter_op",
    source="Samsung/ONE, runtime/onert, HEScheduler.cc",
    summary="operators by rank, each on the backend where it ends soonest; guesses what transfers cost",
    units=("cpu",),
    propose=_propose,
)
