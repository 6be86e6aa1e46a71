"""What the planner of a plan's device says of what a format really carries."""

from __future__ import annotations

from msgspec.structs import replace

from hetrl.condition import AT_REST, Condition, parse_condition
from hetrl.device_bridge.engine_check import check_engine
from hetrl.device_bridge.host.opening import HOST
from hetrl.device_bridge.spec import DeviceSpec, Engine
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.errors import PlanError
from hetrl.export.whole import WholeModel
from hetrl.graph import OperatorGraph
from hetrl.measurement import Measurement
from hetrl.plan import Axis, Expected, Part, Plan, Segment
from hetrl.plan_check import model_ref

SAME = 1e-5  # of a promise: plan files hold six digits


def engine_set(plan: Plan, spec: DeviceSpec) -> str:
    """The device's engine set that the plan was made in: of the sets with its processors, one of just its engines.

    :raises PlanError: none has its processors.
    """
    names = [spec.default_engine, *(name for name in spec.engines if name != spec.default_engine)]
    fits = [name for name in names if _fits(plan, spec.engine(name), spec.id)]
    if not fits:
        check_engine(plan, spec.engine(names[0]), spec.id)
    return min(fits, key=lambda name: set(spec.engine(name).engines) != set(plan.engines))


def _fits(plan: Plan, engine: Engine, device: str) -> bool:
    try:
        check_engine(plan, engine, device)
    except PlanError:
        return False
    return True


def condition_of(plan: Plan) -> Condition:
    """What the plan's maker measured it under, or else what its device would be asked about."""
    if plan.expected is not None:
        return parse_condition(plan.expected.condition)
    return AT_REST if plan.device == HOST else Condition()


def predicted(plan: Plan, graph: OperatorGraph, spec: DeviceSpec, condition: Condition) -> Measurement:
    """What the surrogate of a device says of a plan.

    :raises PlanError: the plan does not fit it.
    """
    device = SurrogateDevice(spec, graph, engine_set(plan, spec))
    return device.measure(plan, condition)


def in_sequence(plan: Plan, whole: WholeModel, spec: DeviceSpec) -> tuple[Plan, OperatorGraph]:
    """A plan whose parts run one after the other: that of the model which has every part as operators of its own."""
    choosing = {p.id for p in spec.engine(engine_set(plan, spec)).processors if p.memory}
    graph = whole.graph(plan.model.name)
    kernels = [graph.group_node_ids(group.index) for group in graph.groups]
    segments: list[Segment] = []
    memories = {number: segment.memory for number, segment in enumerate(plan.segments)}
    for nodes in kernels:
        place = whole.places[nodes[-1]]
        memory = memories[place.segment] if place.processor in choosing else None
        last = segments[-1] if segments else None
        if last is not None and last.processors == (place.processor,) and last.memory == memory:
            segments[-1] = replace(last, nodes=(*last.nodes, *nodes))
        else:
            segments.append(Segment(nodes=nodes, parts=(Part(place.processor),), axis=Axis.NONE, memory=memory))
    return replace(plan, model=model_ref(graph), segments=tuple(segments), overlap=False, expected=None), graph


def promise(measured: Measurement, condition: Condition, accuracy_drop_pct: float) -> Expected | None:
    """A measurement as a plan's promise; None where there is none."""
    if measured.latency_ms is None:
        return None
    return Expected(
        condition=str(condition),
        latency_ms=measured.latency_ms,
        accuracy_drop_pct=accuracy_drop_pct,
        frame_drop_rate=measured.frame_drop_rate,
        peak_memory_mb=measured.peak_memory_mb,
        energy_mj=measured.energy_mj,
        evidence=measured.evidence,
    )
