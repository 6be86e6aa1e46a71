"""NN-Stretch, registered for each team of processors; its rule is in `nn_stretch_rule`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hetrl.agents.policies.base import HandPolicy, Proposal

if TYPE_CHECKING:
    from hetrl.device_bridge.surrogate.device import SurrogateDevice


def _propose(device: SurrogateDevice, units: tuple[str, ...]) -> Proposal:
    from hetrl.agents.policies.nn_stretch_rule import stretched

    return stretched(device, units)


def _nn_stretch(*units: str) -> HandPolicy:
    return HandPolicy(
        id=f"nn_stretch_{'_'.join(units)}",
        family="nn_stretch",
        granularity="subgraph",
        source="Wei et al., NN-Stretch, MobiSys'23",
        summary="one branch per processor, of balanced widths, merged at few stage ends; changes the model, which must "
        "be trained anew: its accuracy drop is predicted without that; ignores load and the screen",
        units=units,
        propose=lambda device: _propose(device, units),
    )


nn_stretch_cpu_gpu = _nn_stretch("cpu", "gpu")
nn_stretch_cpu_dsp = _nn_stretch("cpu", "dsp")
nn_stretch_cpu_gpu_dsp = _nn_stretch("cpu", "gpu", "dsp")
