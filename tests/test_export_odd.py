"""Models and plans that are out of the ordinary, and bundles whose files say something else than their plan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper

import hetrl
from hetrl.export.bundle import open_bundle
from hetrl.graph.reader import load_graph
from hetrl.plan import Evidence, Expected
from hetrl.validating import validate_bundle
from tests.export_help import exported, random_model, random_plans, reseal, shared_plans

SEVERAL = """
<ir_version: 8, opset_import: ["" : 17]>
several (float[1,8,8,8] x, float[1,8,8,8] unread) => (float[1,4,8,8] b, float mean)
{
    c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w)
    r = Relu(c)
    a, b = Split<axis = 1>(r)
    d = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r, w)
    mean = ReduceMean<keepdims = 0>(d)
}
"""


def several(path: Path) -> Path:
    """Two outputs of one operator, a scalar one, a weight that two read, and an input that nobody reads."""
    model = onnx.parser.parse_model(SEVERAL)
    weight = np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("format_name", ["onnxruntime", "onnxruntime-annotated", "openvino"])
def test_several_outputs_a_scalar_and_shared_weights(format_name: str, tmp_path: Path) -> None:
    model = several(tmp_path / "several.onnx")
    assert load_graph(model).outputs == ("b", "mean")
    plans = random_plans(model, 30)
    mixed = sorted(plans, key=lambda plan: (-len(plan.processors), -plan.splits))
    for number, plan in enumerate(mixed[:3]):
        exported(plan, model, format_name, tmp_path / f"out{number}")
        found = validate_bundle(tmp_path / f"out{number}", repeats=1)
        assert found.ok, found.checks


def normalized(path: Path) -> Path:
    """Blocks of a convolution, an InstanceNormalization and an activation, with a skip around each."""
    nodes, tensors, x = [], [], "x"
    drawn = np.random.default_rng(0)
    for block in range(5):
        shapes = {f"w{block}": (16, 16, 3, 3), f"scale{block}": (16,), f"bias{block}": (16,)}
        for name, shape in shapes.items():
            tensors.append(onnx.numpy_helper.from_array(drawn.normal(size=shape).astype(np.float32), name))
        a, b, c, y = (f"{letter}{block}" for letter in "abcy")
        nodes += [
            helper.make_node("Conv", [x, f"w{block}"], [a], a, pads=[1, 1, 1, 1]),
            helper.make_node("InstanceNormalization", [a, f"scale{block}", f"bias{block}"], [b], b),
            helper.make_node("Relu", [b], [c], c),
            helper.make_node("Add", [c, x], [y], y),
        ]
        x = y
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 16, 16, 16)) for name in ("x", x)]
    graph = helper.make_graph(nodes, "normalized", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("format_name", ["onnxruntime", "onnxruntime-annotated", "openvino"])
def test_sizes_that_a_reader_works_out_stay_in_their_piece(format_name: str, tmp_path: Path) -> None:
    """OpenVINO makes an InstanceNormalization of operators on sizes, which none of many pieces may hand to another."""
    model = normalized(tmp_path / "normalized.onnx")
    for number, plan in enumerate(shared_plans(model, 3)):
        exported(plan, model, format_name, tmp_path / f"out{number}")
        if format_name == "openvino":
            assert "ShapeOf" not in (tmp_path / f"out{number}" / "model.xml").read_text()
        found = validate_bundle(tmp_path / f"out{number}", repeats=1)
        assert found.ok, found.checks


def conv(source: str, result: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, "w"], [result], pads=[1, 1, 1, 1])


def one(op_type: str, source: str, result: str, **attributes: int) -> onnx.NodeProto:
    return helper.make_node(op_type, [source], [result], **attributes)


ODD_NODES = {
    "chains that do nothing": [
        conv("x", "a"), one("Dropout", "a", "b"), one("Cast", "b", "c", to=TensorProto.FLOAT), conv("c", "y"),
    ],
    "chains the other way round": [
        conv("x", "a"), one("Cast", "a", "b", to=TensorProto.FLOAT), one("Dropout", "b", "c"), conv("c", "y"),
    ],
    "names like those of parts": [
        conv("x", "a@1.0"), one("Relu", "a@1.0", "b@0.1"), conv("b@0.1", "c@99.7"), one("Relu", "c@99.7", "y"),
    ],
    "a second result like a part": [
        conv("x", "a"),
        helper.make_node("Split", ["a"], ["s", "t@99.0"], axis=1),
        one("Relu", "s", "r"), one("Sigmoid", "t@99.0", "u"),
        helper.make_node("Concat", ["r", "u"], ["z"], axis=1),
        conv("z", "y"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("format_name", ["onnxruntime", "onnxruntime-annotated", "openvino"])
@pytest.mark.parametrize("nodes", ODD_NODES.values(), ids=ODD_NODES)
def test_operators_whose_names_are_odd_or_lost(nodes: list[onnx.NodeProto], format_name: str, tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 8, 16, 16)) for name in ("x", "y")]
    check_plans(nodes, ends, [weight], format_name, tmp_path)


@pytest.mark.parametrize("first", ["", "Y"])
@pytest.mark.parametrize("format_name", ["onnxruntime", "onnxruntime-annotated", "openvino"])
def test_operators_whose_first_result_nobody_reads(first: str, format_name: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(draw.normal(size=shape).astype(np.float32), name)
        for name, shape in (("W", (1, 16, 8)), ("R", (1, 16, 4)))
    ]
    nodes = [helper.make_node("LSTM", ["x", "W", "R"], [first, "h"], hidden_size=4), one("Relu", "h", "y")]
    shapes = (("x", (5, 1, 8)), ("y", (1, 1, 4)))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
    check_plans(nodes, ends, weights, format_name, tmp_path)


def check_plans(
    nodes: list[onnx.NodeProto],
    ends: list[onnx.ValueInfoProto],
    weights: list[TensorProto],
    format_name: str,
    folder: Path,
) -> None:
    """The most mixed and the most shared of some plans hold in a runtime."""
    graph = helper.make_graph(nodes, "odd", ends[:1], ends[1:], weights)
    path = folder / "odd.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    plans = random_plans(path, 40)
    mixed = sorted(plans, key=lambda plan: (-len(plan.processors), -len(plan.segments)))
    for number, plan in enumerate((mixed[0], mixed[1], max(plans, key=lambda plan: plan.splits))):
        exported(plan, path, format_name, folder / f"out{number}")
        found = validate_bundle(folder / f"out{number}", repeats=1)
        assert found.ok, (plan.segments, found.checks)


def test_whole_numbers_go_in(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["table", "i"], ["rows"]), helper.make_node("ReduceSum", ["rows"], ["y"])]
    table = onnx.numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "table")
    ends = [
        helper.make_tensor_value_info("i", TensorProto.INT64, (2,)),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 1)),
    ]
    graph = helper.make_graph(nodes, "rows", ends[:1], ends[1:], [table])
    path = tmp_path / "rows.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    exported(random_plans(path, 1)[0], path, "onnxruntime", tmp_path / "out")
    assert validate_bundle(tmp_path / "out", repeats=1).ok


@pytest.mark.parametrize("format_name", ["onnxruntime", "openvino", "ncnn", "onnxruntime-annotated"])
def test_files_that_place_operators_otherwise_are_noticed(format_name: str, tmp_path: Path) -> None:
    """Sealed anew, with another plan in the manifest: the files still place operators as they did."""
    model = random_model(tmp_path, 5)
    plans = [plan for plan in random_plans(model, 60) if not plan.splits and not plan.caps]
    mixed = next(plan for plan in plans if len(plan.processors) == 2)
    exported(mixed, model, format_name, tmp_path / "out")
    assert validate_bundle(tmp_path / "out", repeats=1).ok
    first, second = mixed.processors
    swapped = tuple(
        replace(s, parts=(replace(s.parts[0], processor=second if s.processors == (first,) else first),), memory=None)
        for s in mixed.segments
    )
    reseal(tmp_path / "out", plan=replace(mixed, segments=swapped))
    found = validate_bundle(tmp_path / "out", repeats=1)
    assert not found.ok, found.checks


@pytest.mark.parametrize(
    "change", [{"CACHE_DIR": "cache"}, {"INFERENCE_PRECISION_HINT": "bf16"}, {"INFERENCE_NUM_THREADS": "-1"}]
)
def test_openvino_gets_no_properties_but_the_plans(change: dict[str, str], tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    exported(random_plans(model, 1)[0], model, "openvino", tmp_path / "out")
    sidecar = tmp_path / "out" / "affinity.json"
    document = json.loads(sidecar.read_text())
    document["devices"][0]["properties"].update(change)
    sidecar.write_text(json.dumps(document))
    reseal(tmp_path / "out")
    found = validate_bundle(tmp_path / "out", repeats=1)
    assert "other devices or properties" in found.checks[-1].detail and not found.ok


def test_a_bundle_judges_by_its_formats_tolerance(tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    exported(random_plans(model, 1)[0], model, "onnxruntime", tmp_path / "out")
    reseal(tmp_path / "out", tolerance=1e9)
    assert "a tolerance of its own" in validate_bundle(tmp_path / "out").checks[-1].detail


def test_a_lowered_plan_is_priced_as_the_given_one_was_measured(tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    condition = "sigma2,competitors=2"
    plan = shared_plans(model, 1)[0]
    row = hetrl.measure(str(model), "d1", plan=plan, condition=condition)
    assert row.latency_ms is not None
    expected = Expected(
        condition=condition,
        latency_ms=row.latency_ms,
        accuracy_drop_pct=0.25,
        frame_drop_rate=None,
        peak_memory_mb=None,
        energy_mj=None,
        evidence=Evidence.PREDICTED,
    )
    done = exported(replace(plan, expected=expected), model, "openvino", tmp_path / "out", lower=True)
    with open_bundle(tmp_path / "out") as bundle:
        lowered = bundle.manifest.plan
    assert done.expected is not None and done.given is not None and done.given.latency_ms == row.latency_ms
    without = replace(lowered, expected=None)
    said = hetrl.measure(str(model), "d1", plan=without, condition=condition)
    assert done.expected.latency_ms == said.latency_ms and done.expected.accuracy_drop_pct == 0.25


def test_lowering_keeps_settings_that_the_format_has(tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    plan = next(p for p in random_plans(model, 90) if p.caps and p.queue_window and not p.overlap)
    exported(plan, model, "onnxruntime", tmp_path / "out", lower=True)
    with open_bundle(tmp_path / "out") as bundle:
        lowered = bundle.manifest.plan
    assert lowered.caps == plan.caps and lowered.queue_window is None
    assert [s.parts for s in lowered.segments] == [s.parts for s in plan.segments]
