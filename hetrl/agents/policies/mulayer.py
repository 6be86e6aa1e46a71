"""muLayer, registered; its rule is in `mulayer_rule`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hetrl.agents.policies.base import HandPolicy, Proposal
from hetrl.plan import Memory

if TYPE_CHECKING:
    from hetrl.device_bridge.surrogate.device import SurrogateDevice


def _propose(device: SurrogateDevice) -> Proposal:
    from hetrl.agents.policies.mulayer_rule import QUARTERS_PCT, mulayer_schedule
    from hetrl.device_bridge.surrogate.tables import engine_options

    options = engine_options(device.engine, QUARTERS_PCT)
    return Proposal(mulayer_schedule(device.cost_model(options=options)), options)


mulayer = HandPolicy(
    id="mulayer",
    family="mulayer",
    granularity="intra_op",
    source="Kim et al., muLayer, EuroSys'19",
    summary="every operator split over output channels at one coarse ratio, joined after each, or whole branches of a "
    "fork side by side; ignores sharing costs",
    units=("cpu", "gpu"),
    propose=_propose,
    memory=Memory.BUFFER,
    splits=True,
)
