"""What a format is to `hetrl export`: what it can carry of a plan, how it is written, how it is tried out.

A format is found through the entry point group `hetrl.exporters`, hetrl's own as well as others'.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hetrl import plugins
from hetrl.condition import Condition
from hetrl.device_bridge.spec import DeviceSpec
from hetrl.fidelity import allowed_error
from hetrl.graph import OperatorGraph
from hetrl.graph.single import Array
from hetrl.measurement import Measurement
from hetrl.objective import Objective
from hetrl.plan import Axis, Plan

if TYPE_CHECKING:
    from hetrl.export.bundle import Bundle
    from hetrl.export.weighted import Weighted

GROUP = "hetrl.exporters"
OF_MODEL = "model"  # the field of a limit that no other plan gets around


class Limit(msgspec.Struct, frozen=True):
    """Something of a plan that a format has no word for; `field` is the plan's."""

    field: str
    reason: str


def grouped(limits: Sequence[Limit]) -> list[Limit]:
    """For people: one for each reason; the field is that of the first, with how many more there are."""
    fields: dict[str, list[str]] = {}
    for limit in limits:
        fields.setdefault(limit.reason, []).append(limit.field)
    return [
        Limit(found[0] + (f" and {len(found) - 1} more" if len(found) > 1 else ""), reason)
        for reason, found in fields.items()
    ]


class Claims(msgspec.Struct, frozen=True):
    """What a format says of a plan.

    :param refused: where operators run could not be kept: such a plan is not exported, unless it is lowered.
    :param left_out: settings, and side-by-side work, that the runtime does without; operators run where they should.
    """

    refused: tuple[Limit, ...] = ()
    left_out: tuple[Limit, ...] = ()


@dataclass(frozen=True)
class Carries:
    """What plans of a format may hold; `claims` and lowering both go by it.

    :param axes: along which segments may be shared.
    :param units: processors by their unit without a number; None for all.
    :param precisions: None for all.
    :param one_processor: the whole model is on one, but for what falls back.
    :param alone: kinds of units of which a plan may use one processor, and what the runtime calls them.
    :param shares_together: the parts of a segment work at the same time; otherwise one after the other.
    """

    axes: frozenset[Axis] = frozenset({Axis.NONE})
    units: frozenset[str] | None = None
    precisions: frozenset[str] | None = None
    one_processor: bool = False
    alone: Mapping[str, str] = field(default_factory=dict)
    shares_together: bool = False
    overlap: bool = False
    caps: bool = False
    process_cap: bool = False
    queue_window: bool = False
    kernel_slice: bool = False
    memory: bool = False
    compression: bool = True

    def takes(self, processor: str) -> str | None:
        """Why a processor (`unit/engine/precision`) is none of the format's, None if it is."""
        unit, _, precision = processor.split("/")
        if self.units is not None and unit_kind(unit) not in self.units:
            return f"there is no {unit_kind(unit)} in this format"
        if self.precisions is not None and precision not in self.precisions:
            return f"it does not calculate in {precision}"
        return None


@dataclass(frozen=True)
class Order:
    """A plan to be written.

    :param graph: of the model that runs: what the plan's compression makes of the original.
    :param spec: of the plan's device; None where it is not known.
    :param weighted: the model with its weights, None for formats that need none.
    """

    plan: Plan
    graph: OperatorGraph
    spec: DeviceSpec | None
    weighted: Weighted | None = None

    @cached_property
    def model(self) -> Weighted:
        assert self.weighted is not None, "a format that needs weights says so"
        return self.weighted


@dataclass(frozen=True)
class Wish:
    """What is to be lowered: the best plan for the same model, device and condition is looked for.

    :param graph: of the model that runs, compressed as the plan says.
    :param objective: what that plan has to keep.
    """

    plan: Plan
    graph: OperatorGraph
    spec: DeviceSpec
    condition: Condition
    objective: Objective = Objective()

    @property
    def limited(self) -> bool:
        """Whether there are frames, and a limit on dropped ones."""
        return self.objective.max_frame_drop_rate is not None and self.condition.ui is not None

    def keeps(self, measured: Measurement) -> bool:
        """Whether a plan that came out like this would do."""
        return measured.latency_ms is not None and self.objective.keeps(0.0, measured.frame_drop_rate)


class Check(msgspec.Struct, frozen=True):
    """One line of `hetrl validate`; `ok` is None where nothing could be said, and `detail` why."""

    name: str
    ok: bool | None
    detail: str


class Moved(msgspec.Struct, frozen=True):
    """Operators of a segment (-1: of several) that did not run where the plan has them."""

    segment: int
    processor: str
    ran_on: str
    operators: int
    reason: str


def merged(found: Iterable[Moved]) -> tuple[Moved, ...]:
    """Those of one processor for one reason as one, of no segment (-1): for people."""
    counts: dict[tuple[str, str, str], int] = {}
    for moved in found:
        key = (moved.processor, moved.ran_on, moved.reason)
        counts[key] = counts.get(key, 0) + moved.operators
    return tuple(Moved(-1, processor, there, count, why) for (processor, there, why), count in counts.items())


def moved_words(moved: Moved) -> str:
    operators = f"{moved.operators} operator" + "s" * (moved.operators != 1)
    return f"{operators} of {moved.processor} ran on {moved.ran_on}: {moved.reason}"


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle as its runtime ran it.

    :param outputs: by name, for the bundle's own inputs.
    :param latency_ms: samples.
    """

    outputs: dict[str, Array]
    latency_ms: tuple[float, ...]
    placement: Check
    moved: tuple[Moved, ...] = ()


class Exporter(ABC):
    """One format.

    :cvar summary: a line for `hetrl export --list`.
    :cvar engines: of plans whose times are its own.
    :cvar by_precision: calculates in what the plan's processors do; otherwise in float32, whatever they are.
    :cvar handing_ms: what the bundle's loader takes to hand a segment on, which no plan's promise has.
    :cvar packages: software whose version a bundle names, distribution by name.
    """

    name: str
    summary: str
    carries: Carries
    needs_weights = True
    engines: frozenset[str] = frozenset()
    by_precision = False
    handing_ms = 0.0
    packages: Mapping[str, str] = {}

    def claims(self, plan: Plan, graph: OperatorGraph) -> Claims:
        """What of the plan it can and cannot carry."""
        from hetrl.export.claims import general_claims

        return general_claims(self.carries, plan)

    def carried(self, plan: Plan, graph: OperatorGraph) -> Plan:
        """What is really carried of a plan: it without what is left out."""
        from hetrl.export.claims import carried

        return carried(self.carries, plan)

    def lowered(self, wish: Wish) -> Plan:
        """The fastest plan that is carried without loss, for the same compression.

        :raises Infeasible: there is none.
        """
        from hetrl.export.lowering import lowered

        return lowered(wish, self.carries)

    @abstractmethod
    def write(self, order: Order, folder: Path) -> None:
        """Write the format's files into `folder`, the same bytes for the same order."""

    @abstractmethod
    def readme(self, order: Order) -> str:
        """How an app loads it, in about five lines of Markdown."""

    def tolerance(self, plan: Plan, *, quantized: bool) -> float:
        """How far outputs may be off from the model's, run whole: largest difference over largest value.

        :param quantized: the model rounds activations to integers.
        """
        precisions = {name.split("/")[2] for name in plan.processors} if self.by_precision else ()
        return allowed_error(precisions, quantized=quantized)

    def quantized(self, folder: Path) -> bool:
        """Whether what is in a bundle makes its runtime round activations to integers: those are rounded elsewhere."""
        return False

    def notes(self, order: Order) -> tuple[str, ...]:
        """What a user should know of this bundle, a sentence each."""
        return ()

    def load_and_run(self, bundle: Bundle, inputs: Mapping[str, Array], repeats: int) -> Tried:
        """Run the bundle in its real runtime.

        :raises Refused: the runtime does not take it.
        :raises MissingExtra: the runtime is not installed.
        """
        raise NotImplementedError

    def text_checks(self, bundle: Bundle) -> Iterator[Check]:
        """Checks of a format that runs nothing by itself."""
        return iter(())

    @property
    def runs(self) -> bool:
        """Whether its bundles run here."""
        return type(self).load_and_run is not Exporter.load_and_run


def unit_kind(unit: str) -> str:
    """`cpu0` and `cpu1` are both CPUs."""
    return unit.rstrip("0123456789")


def unit_of(processor: str) -> str:
    """`gpu` of `gpu0/mace/fp32`."""
    return unit_kind(processor.split("/", maxsplit=1)[0])


def engines_used(plan: Plan) -> tuple[str, ...]:
    """Of the plan's processors; `plan.engines` are those that it could choose from."""
    return tuple(dict.fromkeys(name.split("/")[1] for name in plan.processors))


def find_exporter(name: str) -> Exporter:
    """The format of that name.

    :raises UnknownName: there is none.
    """
    found: Exporter = plugins.load(GROUP, name, "format", "hetrl export --list")
    return found


def exporters() -> tuple[Exporter, ...]:
    """All of them, by name."""
    return tuple(found for _, found in sorted(plugins.load_all(GROUP).items()))
