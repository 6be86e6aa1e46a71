"""A setting with its exact optimum and its hand plans."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import msgspec
from msgspec import UNSET

from hetrl.agents.exact import Exact, exact
from hetrl.agents.infeasible import Tried, infeasible
from hetrl.agents.policies import policy_catalog
from hetrl.agents.trials import Header
from hetrl.compress.planned import compressed_graph
from hetrl.compression import Compression
from hetrl.device_bridge.surrogate.compile import plan_of
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.setting import Setting
from hetrl.errors import Infeasible, UsageError
from hetrl.plan import MadeBy, Plan


@dataclass(frozen=True)
class Problem(Setting):
    """A setting to be tuned, and what can be known of its solutions without a search."""

    @cached_property
    def optimum(self) -> Exact:
        """The planner's exact optimum."""
        return exact(self.space, self.objective, self.condition)

    @property
    def knows_optimum(self) -> bool:
        """Whether the optimum is the device's own, not just its surrogate's."""
        return self.device is self.planner

    def optimal_plan(self) -> Plan:
        """The exact optimum as a plan.

        :raises Infeasible: no plan that was found keeps the frame limit or fits into memory; it says by how much.
        """
        found = self.optimum
        if found.schedule is None:
            raise self._without_optimum()
        return plan_of(
            found.schedule,
            self.graph,
            self.space.options,
            self.planner.engine,
            device=self.planner.spec.id,
            compression=found.compression,
            made_by=MadeBy(method="exact"),
        )

    def _without_optimum(self) -> Infeasible:
        """What the hand policies' plans and the CPU alone say of the budgets that the exact search could not keep."""
        tried = []
        for name, plan in [("the CPU alone", self.cpu_plan()), *self.hand_plans()]:
            if plan.stretched:
                continue
            said = self.planner.measure(plan, self.condition)
            error = said.error.message if said.error else None
            tried.append(Tried(name, self.drops.of_plan(plan), said.frame_drop_rate, error))
        kept = [t for t in tried if t.error is None and self.objective.keeps(t.accuracy_drop_pct, t.frame_drop_rate)]
        if not kept:
            return infeasible(tried, self.objective)
        limit_pct = 100 * (self.objective.max_frame_drop_rate or 0.0)
        return Infeasible(
            f"the exact search found no plan that keeps frame drops at most {limit_pct:g} %, but {kept[0].name} does "
            f"({100 * (kept[0].frame_drop_rate or 0.0):.3g} %)",
            "`hetrl compare` shows such plans",
        )

    def hand_plans(self) -> list[tuple[str, Plan]]:
        """Plans of every hand policy that the engine set has the processors for."""
        return list(self._hand_plans)

    @cached_property
    def _hand_plans(self) -> tuple[tuple[str, Plan], ...]:
        return tuple((p.id, p.plan(self.planner)) for p in policy_catalog() if p.applies(self.planner))

    def compressed_plans(self, compression: Compression) -> list[tuple[str, Plan]]:
        """What the hand policies make of a compressed model, named for both.

        Channels come in the device's multiples unless others are named.

        :raises UsageError: it leaves the model as it is.
        """
        if compression.prunes and compression.channel_multiple is UNSET:
            multiple = self.planner.spec.channel_multiple
            compression = msgspec.structs.replace(compression, channel_multiple=multiple)
        graph = compressed_graph(self.graph, compression)
        if graph.nodes == self.graph.nodes:
            raise UsageError(
                f"{compression} leaves {self.graph.name} as it is",
                "`hetrl compress` says what cannot be pruned, and why",
            )
        planner = SurrogateDevice(self.planner.spec, graph, self.planner.engine_name)
        found = ((p.id, p.plan(planner)) for p in policy_catalog() if p.applies(planner))
        return [
            (f"{name} {compression}", msgspec.structs.replace(plan, compression=compression)) for name, plan in found
        ]

    @property
    def candidates(self) -> list[tuple[str, Plan]]:
        """The exact plan, where there is one, and those of the hand policies, by name."""
        exact = [("exact", self.optimal_plan())] if self.optimum.schedule is not None else []
        return [*exact, *self.hand_plans()]

    def header(self) -> Header:
        """What the run's trials are about."""
        return Header(
            model_sha256=self.graph.structure_hash,
            device=self.device.describe().id,
            spec_sha256=hashlib.sha256(msgspec.json.encode(self.device.spec)).hexdigest(),
            engine=self.planner.engine_name,
            condition=str(self.condition),
            compressions=self.space.compressions,
            accuracy=self.drops.key,
            length=self.space.length,
            width=self.space.width,
        )
