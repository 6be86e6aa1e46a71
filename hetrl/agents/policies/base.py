"""A hand policy: a published strategy as a function of a device's surrogate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hetrl.errors import UsageError
from hetrl.plan import MadeBy, Memory, Plan

if TYPE_CHECKING:  # `hetrl policies` lists policies without paying for a cost model
    from hetrl.device_bridge.surrogate.device import SurrogateDevice
    from hetrl.device_bridge.surrogate.schedule import Schedule
    from hetrl.device_bridge.surrogate.tables import Option


@dataclass(frozen=True)
class Proposal:
    """A schedule, and the options that its numbers refer to."""

    schedule: Schedule
    options: tuple[Option, ...]


@dataclass(frozen=True)
class HandPolicy:
    """A strategy by its published rule.

    :param granularity: the level at which it distributes work.
    :param source: where the rule is published.
    :param summary: the rule, and what it ignores, in a sentence.
    :param units: processor units it needs.
    :param memory: memory type it needs, where a processor has a choice.
    """

    id: str
    family: str
    granularity: str
    source: str
    summary: str
    units: tuple[str, ...]
    propose: Callable[[SurrogateDevice], Proposal]
    memory: Memory | None = None

    def applies(self, device: SurrogateDevice) -> bool:
        """Whether the device's engine set has what the strategy needs."""
        return self._lacks(device) is None

    def _lacks(self, device: SurrogateDevice) -> str | None:
        processors = device.engine.processors
        missing = sorted(set(self.units) - {p.unit for p in processors})
        if missing:
            return missing[0]
        choices = [p.memory for p in processors if p.unit in self.units and p.memory]
        if self.memory is not None and any(self.memory not in memories for memories in choices):
            return f"{self.memory.value} memory"
        return None

    def plan(self, device: SurrogateDevice) -> Plan:
        """The strategy's plan for the device's model.

        :raises UsageError: the engine set lacks a processor or a memory type that the strategy needs.
        """
        from hetrl.device_bridge.surrogate.compile import plan_of

        lacking = self._lacks(device)
        if lacking is not None:
            raise UsageError(
                f"policy {self.id!r} needs {lacking}, which {device.spec.id} ({device.engine_name}) lacks",
                "`hetrl devices` lists processors",
            )
        proposal = self.propose(device)
        return plan_of(
            proposal.schedule,
            device.graph,
            proposal.options,
            device.engine,
            device=device.spec.id,
            engine_name=device.engine_name,
            made_by=MadeBy(method=self.id),
        )
