"""A device with a model, a condition and an objective, resolved from what a user names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from hetrl.accuracy import PREDICTED_DROPS, AccuracyDrops
from hetrl.condition import Condition, parse_condition
from hetrl.device_bridge.base import Device
from hetrl.device_bridge.recording import recorded
from hetrl.device_bridge.registry import open_device
from hetrl.device_bridge.surrogate.compile import plan_of
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule
from hetrl.envs.evaluate import require_present
from hetrl.envs.space import PlanSpace
from hetrl.errors import Infeasible
from hetrl.graph import OperatorGraph
from hetrl.objective import Objective
from hetrl.plan import MadeBy, Memory, Plan
from hetrl.zoo.resolve import resolve_model

if TYPE_CHECKING:
    from hetrl.scoring.measured_drops import Evaluation


@dataclass(frozen=True)
class Setting:
    """What plans are made for. `device` is the user's; `planner` the surrogate that planning relies on (maybe it).

    :param drops: what compression costs the model in accuracy.
    """

    device: Device
    planner: SurrogateDevice
    condition: Condition
    objective: Objective
    drops: AccuracyDrops = PREDICTED_DROPS

    @classmethod
    def of(  # noqa: PLR0913 - all that a user names
        cls,
        model: str,
        device: str,
        *,
        engine: str | None,
        condition: str | None,
        objective: Objective,
        input_shapes: Mapping[str, Sequence[int]] | None,
        seeded_weights: int | None = None,
        record: str | Path | None = None,
        evaluation: Evaluation | None = None,
        tell: Callable[[str], None] = lambda sentence: None,
    ) -> Self:
        """Resolve names; the cheap checks come first.

        :param record: file that everything measured on the device is added to.
        :param evaluation: what accuracy is measured on; it is predicted without.
        :param tell: hears of every accuracy that was measured.
        :raises HetrlError: whatever is wrong with one of them.
        """
        parsed = None if condition is None else parse_condition(condition)
        shapes = {name: tuple(shape) for name, shape in (input_shapes or {}).items()}
        graph = resolve_model(model, shapes or None, seeded_weights)
        drops: AccuracyDrops = PREDICTED_DROPS
        if evaluation is not None:
            from hetrl.scoring.measured_drops import measured_drops

            drops = measured_drops(graph, evaluation, objective.max_accuracy_drop_pct, tell)
        opened = open_device(device, graph, engine)
        if record is not None:
            opened = recorded(opened, Path(record))
        if parsed is None:
            limited = objective.max_frame_drop_rate is not None
            parsed = Condition() if limited else opened.default_condition
        return cls.on(opened, parsed, objective, drops)

    @classmethod
    def on(
        cls, device: Device, condition: Condition, objective: Objective, drops: AccuracyDrops = PREDICTED_DROPS
    ) -> Self:
        """The setting of an open device."""
        device = device.allowing(objective.max_output_error)
        if isinstance(device, SurrogateDevice):
            return cls(device, device, condition, objective, drops)
        return cls(device, SurrogateDevice(device.spec, device.graph, device.engine_name), condition, objective, drops)

    @property
    def graph(self) -> OperatorGraph:
        return self.device.graph

    @cached_property
    def space(self) -> PlanSpace:
        return PlanSpace(self.planner, self.objective, self.drops)

    def cpu_plan(self) -> Plan:
        """Everything on the CPU: it runs any model, and keeps every budget, so costs are measured against it."""
        units = [p.unit for p in self.planner.engine.processors]
        whole = Placed(0, self.space.groups - 1, units.index("cpu"), Memory.BUFFER)
        return plan_of(
            Schedule((whole,)),
            self.graph,
            self.space.options,
            self.planner.engine,
            device=self.planner.spec.id,
            made_by=MadeBy(method="reference"),
        )

    @cached_property
    def reference_ms(self) -> float:
        """Latency of `cpu_plan` on the device, measured when first asked for.

        :raises Infeasible: it does not run there.
        :raises DeviceFailed: the device went away.
        """
        measured = self.device.measure(self.cpu_plan(), self.condition)
        if measured.latency_ms is not None:
            return measured.latency_ms
        require_present(measured, self.device)
        reason = measured.error.message if measured.error else ""
        raise Infeasible(
            f"the model does not run on the CPU of {self.planner.spec.id}: {reason}",
            "choose a smaller model, or another device",
        )
