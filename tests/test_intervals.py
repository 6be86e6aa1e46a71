"""90 % intervals: what they hold, how they grow, and whether truth lies inside."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hetrl
from hetrl.calibration.fit import PHONES
from hetrl.calibration.predict import CellError
from hetrl.calibration.rows import Cell
from hetrl.calibration.scaling import NEAREST
from hetrl.calibration.uncertainty import LEAST_SHARE, family_spreads, of_network, of_pair, spreads
from hetrl.cli.main import run
from hetrl.device_bridge.spec import Engine, Known, builtin_names, load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.intervals import CHANNELS, OTHER_MEMORY, SPLIT, interval_ms, known_as, plan_class
from hetrl.plan import Axis, Memory, Part, Plan, Segment
from tests.surrogate_help import D1, chain_graph, measured, plan_with

CLASSES = ("cpu", "gpu", SPLIT, CHANNELS, OTHER_MEMORY)
engines = st.sampled_from([engine for name in builtin_names() for engine in load_spec(name).engines.values()])
MACE = {name: load_spec(name).engine("mace") for name in builtin_names()}


def ratio(engine: Engine, known: Known, name: str, shifted: bool = False) -> float:
    """Upper end of an interval by its prediction."""
    found = interval_ms(1.0, engine, known, name, shifted)
    assert found is not None
    return found[1]


@given(engines, st.sampled_from(CLASSES), st.floats(1e-3, 1e6))
def test_an_interval_holds_its_prediction_and_grows_under_a_condition(
    engine: Engine, name: str, latency_ms: float
) -> None:
    for known in (k for k in Known if k in engine.errors and k is not Known.SHIFTED):
        _check_growth(engine, known, name, latency_ms)


def _check_growth(engine: Engine, known: Known, name: str, latency_ms: float) -> None:
    cold, warm = (interval_ms(latency_ms, engine, known, name, shifted) for shifted in (False, True))
    assert cold is not None and warm is not None
    assert warm[0] < cold[0] < latency_ms < cold[1] < warm[1]
    assert cold[0] * cold[1] == pytest.approx(latency_ms**2)  # symmetric on the logarithm


@pytest.mark.parametrize("phone", MACE)
def test_what_is_less_known_is_wider(phone: str) -> None:
    for name in CLASSES:
        seen, unseen = (ratio(MACE[phone], known, name) for known in (Known.SEEN, Known.UNSEEN))
        assert 1 < seen <= unseen
        if phone in PHONES:
            assert 1 < ratio(MACE[phone], Known.CALIBRATED, name) <= seen
    kinds = (Known.CALIBRATED, Known.SEEN, Known.UNSEEN) if phone in PHONES else (Known.SEEN, Known.UNSEEN)
    widths = [np.mean([ratio(MACE[phone], known, name) for name in CLASSES]) for known in kinds]
    assert widths == sorted(set(widths))


@pytest.mark.parametrize("phone", NEAREST)
def test_a_scaled_phone_is_known_less_well_than_those_it_is_scaled_from(phone: str) -> None:
    for origin in NEAREST[phone].gpu:
        for known in (Known.SEEN, Known.UNSEEN):
            assert all(ratio(MACE[phone], known, n) >= ratio(MACE[origin], known, n) for n in CLASSES)


def test_a_class_without_an_error_of_its_own_takes_the_widest() -> None:
    engine = load_spec("d1").engine("tflite")
    units = [p.unit for p in engine.processors]
    widest = max(ratio(engine, Known.UNSEEN, unit) for unit in units)
    assert ratio(engine, Known.UNSEEN, OTHER_MEMORY) == widest
    nothing = msgspec.structs.replace(engine, errors={})
    assert interval_ms(5.0, nothing, Known.UNSEEN, "cpu", False) is None


# Which errors a plan shares.


def test_plan_classes() -> None:
    device = SurrogateDevice(D1, chain_graph(3))
    ids = [device.graph.group_node_ids(g) for g in range(3)]
    gpu, cpu = (p.id for p in reversed(device.engine.processors))
    both = (Part(gpu, 50), Part(cpu, 50))

    def of(*segments: Segment) -> str:
        return plan_class(plan_with(device, segments), device.engine)

    def whole(name: str, memory: Memory | None, start: int = 0) -> Segment:
        return Segment(nodes=tuple(n for group in ids[start:] for n in group), parts=(Part(name),), memory=memory)

    def split(group: int, axis: Axis, memory: Memory = Memory.IMAGE) -> Segment:
        return Segment(nodes=ids[group], parts=both, axis=axis, memory=memory)

    assert of(whole(cpu, None)) == "cpu"
    assert of(whole(gpu, Memory.IMAGE)) == "gpu"
    assert of(whole(gpu, Memory.BUFFER)) == OTHER_MEMORY
    assert of(split(0, Axis.HEIGHT), whole(gpu, Memory.IMAGE, 1)) == SPLIT
    assert of(split(0, Axis.HEIGHT, Memory.BUFFER), whole(cpu, None, 1)) == OTHER_MEMORY
    assert of(Segment(nodes=ids[0], parts=(Part(cpu),)), whole(gpu, Memory.IMAGE, 1)) == SPLIT
    channels = [split(group, Axis.OUTPUT_CHANNELS, Memory.BUFFER) for group in range(3)]
    assert of(*channels) == CHANNELS
    assert of(*channels[:2], split(2, Axis.HEIGHT)) == OTHER_MEMORY
    friendly = {"d5": "codl_buffer", "d1": "codl_image"}
    for phone, policy in friendly.items():  # buffers are what Mali likes
        other = SurrogateDevice(load_spec(phone), device.graph)
        plan = plan_with(other, [whole(gpu, Memory(policy.removeprefix("codl_")))])
        assert plan_class(plan, other.engine) == "gpu"


def test_how_well_a_model_is_known() -> None:
    engine = MACE["d1"]
    calibrated, seen = engine.calibrated_models[0], engine.seen_models[0]
    assert known_as(calibrated, 0.0, engine) is Known.CALIBRATED
    assert known_as(seen, 0.0, engine) is Known.SEEN
    assert {known_as(h, 0.2, engine) for h in (calibrated, seen)} == {Known.UNSEEN}
    assert known_as("0" * 64, 0.0, engine) is Known.UNSEEN
    assert not MACE["d2"].calibrated_models and len(MACE["d2"].seen_models) == 5


# What users see.


@pytest.mark.parametrize("device", builtin_names())
def test_every_device_answers_with_an_interval(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["measure", "--device", device, "--model", "resnet18", "--policy", "codl_image"]
    assert run([*wanted, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    low, high = row["latency_interval_ms"]
    assert 0 < low < row["latency_ms"] < high
    assert run(wanted) == 0
    assert "90 % in" in capsys.readouterr().out


def test_a_shifted_condition_widens_what_a_device_says() -> None:
    cold, hot = (hetrl.measure("vgg16", "d1", policy="codl_image", condition=c) for c in ("cold", "sigma2"))
    assert cold.latency_interval_ms is not None and hot.latency_interval_ms is not None
    assert hot.latency_interval_ms[1] / (hot.latency_ms or 1) > cold.latency_interval_ms[1] / (cold.latency_ms or 1)


def test_pruning_makes_a_model_unseen() -> None:
    device = SurrogateDevice(D1, hetrl.load_model("vgg16"))
    gpu = device.engine.processors[1].id
    nodes = tuple(n for g in range(len(device.graph.groups)) for n in device.graph.group_node_ids(g))
    plan: Plan = plan_with(device, [Segment(nodes=nodes, parts=(Part(gpu),), memory=Memory.IMAGE)])
    pruned = msgspec.structs.replace(plan, compression=msgspec.structs.replace(plan.compression, prune_ratio=0.1))
    spread = []
    for wanted in (plan, pruned):
        answer = measured(device, wanted)
        assert answer.latency_interval_ms is not None
        spread.append(answer.latency_interval_ms[1] / (answer.latency_ms or 1.0))
    assert spread == [ratio(device.engine, k, "gpu") for k in (Known.CALIBRATED, Known.UNSEEN)]


# Where spreads come from.


def error(phone: str, model: str, strategy: str, log_error: float) -> CellError:
    return CellError(Cell(phone, model, strategy, 100 * float(np.exp(log_error))), 100.0)


def test_a_spread_is_the_root_mean_square_times_students_t_of_the_groups() -> None:
    rows = [error(p, m, "mace_cpu", 0.1) for p in ("d1", "d3") for m in ("vgg16", "fst", "yolov2")]
    assert spreads(rows, of_network) == pytest.approx({"cpu": 0.1 * 2.9200}, rel=1e-4)  # 3 groups
    assert spreads(rows, of_pair) == pytest.approx({"cpu": 0.1 * 2.0150}, rel=1e-4)  # 6 groups
    assert spreads([error("d1", "fst", "ideal", 0.5)], of_pair) == {}  # no plan is an "Ideal"


def test_spreads_are_a_familys_own_where_it_has_enough_groups() -> None:
    networks = ("vgg16", "fst", "yolov2", "posenet")
    adreno = [error(p, m, "mace_gpu", 0.05) for p in ("d1", "d3", "d4") for m in networks]
    mali = [error("d5", m, "mace_gpu", 0.3) for m in networks]
    rows = [*adreno, *mali]
    everyone = spreads(rows, of_network)["gpu"]
    assert family_spreads(rows, of_network, "mali") == spreads(mali, of_network)
    own = spreads(adreno, of_network)["gpu"]
    assert own < LEAST_SHARE * everyone == family_spreads(rows, of_network, "adreno")["gpu"]  # the floor
    few = [*adreno, *mali[:2]]
    assert family_spreads(few, of_network, "mali") == spreads(few, of_network)
