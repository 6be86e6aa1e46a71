"""A setting with its exact optimum and its hand plans."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import msgspec

from hetrl.agents.exact import Exact, exact
from hetrl.agents.policies import policy_catalog
from hetrl.agents.trials import Header
from hetrl.device_bridge.surrogate.compile import plan_of
from hetrl.envs.setting import Setting
from hetrl.errors import Infeasible
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

        :raises Infeasible: no plan that was found keeps the frame limit.
        """
        found = self.optimum
        if found.schedule is None:
            limit = self.objective.max_frame_drop_rate
            if limit is None:
                raise Infeasible(
                    f"no plan was found that fits into {self.planner.memory_limit_mb:.0f} MB, half of the memory",
                    "choose a smaller model or input",
                )
            raise Infeasible(
                f"no plan was found that keeps the frame drops of {self.condition} at most {100 * limit:g} %",
                "raise --max-frame-drop, or give the UI less work (--condition cold,ui=60hz:4ms)",
            )
        return plan_of(
            found.schedule,
            self.graph,
            self.space.options,
            self.planner.engine,
            device=self.planner.spec.id,
            engine_name=self.planner.engine_name,
            prune_ratio=found.prune_ratio,
            made_by=MadeBy(method="exact"),
        )

    def hand_plans(self) -> list[tuple[str, Plan]]:
        """Plans of every hand policy that the engine set has the processors for."""
        return [(p.id, p.plan(self.planner)) for p in policy_catalog() if p.applies(self.planner)]

    def header(self) -> Header:
        """What the run's trials are about."""
        return Header(
            model_sha256=self.graph.structure_hash,
            device=self.device.describe().id,
            spec_sha256=hashlib.sha256(msgspec.json.encode(self.device.spec)).hexdigest(),
            engine=self.planner.engine_name,
            condition=str(self.condition),
            prune_ratios=self.space.prune_ratios,
            length=self.space.length,
            width=self.space.width,
        )
