"""A hand policy: a published strategy as a function of a device's surrogate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hetrl.agents.policies.options import KernelOptions
from hetrl.errors import UsageError
from hetrl.plan import MadeBy, Memory, Plan

if TYPE_CHECKING:  # `hetrl policies` lists policies without paying for a cost model
    from hetrl.device_bridge.spec import Engine
    from hetrl.device_bridge.surrogate.device import SurrogateDevice
    from hetrl.device_bridge.surrogate.schedule import Schedule
    from hetrl.device_bridge.surrogate.tables import Option

MACE, TFLITE, NCNN, ORT, OPENVINO = "mace", "tflite", "ncnn", "onnxruntime", "openvino"
RUNTIMES = (MACE, TFLITE, NCNN, ORT, OPENVINO)  # engine sets whose default behaviour hetrl knows


def runtimes_of(engine: Engine) -> tuple[str, ...]:
    """The runtimes of an engine set: MACE for `mace_dsp`, or for one that hetrl does not know."""
    return tuple(dict.fromkeys(name if name in RUNTIMES else MACE for name in engine.engines))


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
    :param runtime: the engine set whose own behaviour it is; None for a rule that any engine set may follow. What
        MACE does is tried on engine sets of names that hetrl does not know as well.
    :param splits: whether it shares operators between the CPU and a GPU with memory types.
    :param options: names of the options that may follow its id; see `options`.
    :param kernels: what these say, where they were given.
    """

    id: str
    family: str
    granularity: str
    source: str
    summary: str
    units: tuple[str, ...]
    propose: Callable[[SurrogateDevice], Proposal]
    memory: Memory | None = None
    runtime: str | None = None
    splits: bool = False
    options: tuple[str, ...] = ()
    kernels: KernelOptions | None = None

    def applies(self, device: SurrogateDevice) -> bool:
        """Whether the device's engine set has what the strategy needs."""
        return self._lacks(device) is None

    def _lacks(self, device: SurrogateDevice) -> str | None:
        processors = device.engine.processors
        if self.runtime is not None and self.runtime not in runtimes_of(device.engine):
            return f"the runtime {self.runtime}"
        missing = sorted(set(self.units) - {p.unit for p in processors})
        if missing:
            return missing[0]
        if self.splits and sharing_gpu(device.engine) is None:
            return "a GPU with memory types that shares operators with the CPU"
        choices = [p.memory for p in processors if p.unit in self.units and p.memory]
        if self.memory is not None and any(self.memory not in memories for memories in choices):
            return f"{self.memory.value} memory"
        return None

    def plan(self, device: SurrogateDevice) -> Plan:
        """The strategy's plan for the device's model.

        :raises UsageError: the engine set lacks a processor, a memory type or an ability that the strategy needs.
        """
        from hetrl.device_bridge.surrogate.compile import plan_of

        lacking = self._lacks(device)
        if lacking is not None:
            wanted = [
                name
                for name, engine in device.spec.engines.items()
                if (self.runtime is None or self.runtime in runtimes_of(engine))
                and set(self.units) <= {p.unit for p in engine.processors}
            ]
            useful = [name for name in wanted if name != device.engine_name]
            raise UsageError(
                f"policy {self.id!r} needs {lacking}, which {device.spec.id} ({device.engine_name}) lacks",
                f"choose --engine {useful[0]}" if useful else "`hetrl devices` lists processors",
            )
        proposal = self.propose(device)
        schedule = proposal.schedule
        if self.kernels is not None:
            schedule = replace(schedule, slice_ms=self.kernels.slice_ms, queue_window=self.kernels.queue_window)
        return plan_of(
            schedule,
            device.graph,
            proposal.options,
            device.engine,
            device=device.spec.id,
            made_by=MadeBy(method=self.id),
        )


def sharing_gpu(engine: Engine) -> int | None:
    """Number of the first GPU with memory types whose link to the CPU splits operators, None if there is none."""
    return next(iter(sharing_gpus(engine)), None)


def sharing_gpus(engine: Engine) -> list[int]:
    """Numbers of all such GPUs: an engine set may have one in several precisions."""
    from hetrl.device_bridge.spec import GpuCost

    splitting = {link.accelerator for link in engine.links if link.splits}
    return [i for i, p in enumerate(engine.processors) if isinstance(p.cost, GpuCost) and p.id in splitting]
