"""Models with int8 weights: cut, exported and compared as they are, not unfolded to float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hetrl.compress.quantize import quantize
from hetrl.export.bundle import open_bundle
from hetrl.fidelity import MAX_OUTPUT_ERROR, MAX_QUANTIZED_ERROR, quantizes, usual_output_error
from hetrl.graph.constant_node import dequantized
from hetrl.graph.reader import load_graph
from hetrl.partition import largest_error
from hetrl.validating import validate_bundle
from tests.export_help import exported, random_plans, reseal, shared_plans
from tests.partition_help import TARGETS, cut_at_random, execute
from tests.torch_models import GoogLeNetLike, MobileNetLike, export

NARROW_WEIGHTS = """
<ir_version: 8, opset_import: ["" : 13]>
narrow (float[1,3,16,16] x) => (float[1,8] y)
{
    wide = DequantizeLinear<axis = 0>(w, scale, zero)
    bias = DequantizeLinear(b, bias_scale)
    c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, wide, bias)
    r = Relu(c)
    again = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, wide)
    s = Add(r, again)
    pooled = GlobalAveragePool(s)
    flat = Flatten(pooled)
    y = Softmax(flat)
}
"""
DENSE = """
    dense = DequantizeLinear<axis = 1>(v, v_scale)
    y = MatMul(flat, dense)
}
"""


def narrow_weights(path: Path, *, dense: bool = False) -> Path:
    """Weights per channel that two read, a bias by one scale; `dense`: a layer with a scale per column."""
    text = NARROW_WEIGHTS
    model = onnx.parser.parse_model(text.replace("    y = Softmax(flat)\n}\n", DENSE) if dense else text)
    draw = np.random.default_rng(0)
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name)
        for name, array in (
            ("w", draw.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8)),
            ("scale", draw.uniform(0.001, 0.01, 8).astype(np.float32)),
            ("zero", draw.integers(-5, 5, 8).astype(np.int8)),
            ("b", draw.integers(-1000, 1000, 8).astype(np.int32)),
            ("bias_scale", np.array(1e-3, np.float32)),
            ("v", draw.integers(-127, 128, (8, 8)).astype(np.int8)),
            ("v_scale", draw.uniform(0.001, 0.01, 8).astype(np.float32)),
        )
        if dense or not name.startswith("v")
    )
    onnx.save(model, path)
    return path


def int8_network(module: type[torch.nn.Module], folder: Path) -> Path:
    """What `hetrl compress --int8` makes of a network that torch exports."""
    torch.manual_seed(0)
    path = export(module(), folder / "float.onnx", (1, 3, 32, 32))
    draw = np.random.default_rng(0)
    name = load_graph(path).inputs[0]
    samples = [{name: draw.normal(size=(1, 3, 32, 32)).astype(np.float32)} for _ in range(4)]
    narrow = folder / "int8.onnx"
    onnx.save(quantize(onnx.load(path), samples).model, narrow)
    return narrow


def executed(path: Path, folder: Path, count: int) -> tuple[list[float], list[onnx.ModelProto]]:
    """Of plans of this computer, shared ones among them: errors, and all pieces of models."""
    partitioner, plans, inputs, reference = cut_at_random(path, folder)
    assert plans[-1].splits > 0
    errors, pieces = [], []
    for plan in (*plans[:1], *plans[-count:]):
        job = partitioner.job(plan, TARGETS)
        errors.append(largest_error(execute(job, partitioner.store, inputs), reference))
        pieces += [onnx.load(partitioner.store.path(p.files[0]), load_external_data=False) for p in job.pieces]
    return errors, pieces


def test_parts_of_int8_weights_are_int8(tmp_path: Path) -> None:
    errors, pieces = executed(narrow_weights(tmp_path / "m.onnx"), tmp_path, 6)
    assert max(errors) < 1e-5
    weights = [t for piece in pieces for t in piece.graph.initializer if len(t.dims) == 4]
    assert {t.data_type for t in weights} == {TensorProto.INT8}
    assert {t.dims[0] for t in weights} > {8}  # some pieces have some channels


def test_parts_of_int8_dense_layers_are_int8(tmp_path: Path) -> None:
    """ONNX Runtime rounds activations where it finds such a layer, in other places for parts of it."""
    path = narrow_weights(tmp_path / "m.onnx", dense=True)
    assert quantizes(load_graph(path))
    errors, pieces = executed(path, tmp_path, 6)
    assert max(errors) < 0.01
    weights = [t for piece in pieces for t in piece.graph.initializer if t.name.startswith("v") and len(t.dims) == 2]
    assert {t.data_type for t in weights} == {TensorProto.INT8}
    assert {t.dims[1] for t in weights} > {8}


@pytest.mark.parametrize("module", [MobileNetLike, GoogLeNetLike])
def test_quantized_networks_run_in_pieces(module: type[torch.nn.Module], tmp_path: Path) -> None:
    path = int8_network(module, tmp_path)
    assert quantizes(load_graph(path))
    errors, pieces = executed(path, tmp_path, 3)
    assert max(errors) < usual_output_error(load_graph(path)) == MAX_QUANTIZED_ERROR
    kernels = [t for piece in pieces for t in piece.graph.initializer if len(t.dims) == 4]
    assert kernels and {t.data_type for t in kernels} == {TensorProto.INT8}


@pytest.mark.parametrize("format_name", ["onnxruntime", "onnxruntime-annotated", "openvino"])
def test_quantized_networks_are_exported_with_int8_weights(format_name: str, tmp_path: Path) -> None:
    path = int8_network(MobileNetLike, tmp_path)
    floats = (tmp_path / "float.onnx").stat().st_size
    for number, plan in enumerate((random_plans(path, 1)[0], shared_plans(path, 1)[0])):
        if format_name == "onnxruntime-annotated" and plan.splits:
            continue
        out = tmp_path / f"out{number}"
        exported(plan, path, format_name, out)
        found = validate_bundle(out, repeats=1)
        assert found.ok, found.checks
        with open_bundle(out) as bundle:
            assert bundle.manifest.tolerance == MAX_QUANTIZED_ERROR
            weights = [f for f in bundle.manifest.files if f.path.endswith(".bin")]
        if weights:
            assert sum(f.bytes for f in weights) < 0.5 * floats


@pytest.mark.parametrize("format_name", ["onnxruntime", "openvino", "ncnn"])
def test_int8_weights_alone_allow_no_more_error(format_name: str, tmp_path: Path) -> None:
    path = narrow_weights(tmp_path / "m.onnx")
    assert not quantizes(load_graph(path))
    exported(shared_plans(path, 1)[0], path, format_name, tmp_path / "out")
    found = validate_bundle(tmp_path / "out", repeats=1)
    assert found.ok, found.checks
    with open_bundle(tmp_path / "out") as bundle:
        assert bundle.manifest.tolerance == MAX_OUTPUT_ERROR


def test_a_tolerance_is_not_the_bundles_to_choose(tmp_path: Path) -> None:
    path = narrow_weights(tmp_path / "m.onnx")
    exported(random_plans(path, 1)[0], path, "onnxruntime", tmp_path / "out")
    reseal(tmp_path / "out", tolerance=MAX_QUANTIZED_ERROR)
    found = validate_bundle(tmp_path / "out", repeats=1)
    assert not found.ok and "a tolerance of its own" in found.checks[-1].detail


def dense_model(path: Path, axis: int, kind: int = TensorProto.INT8) -> Path:
    """A dense layer of 16 inputs and 12 outputs after a ReLU, with scales along an axis."""
    draw = np.random.default_rng(0)
    low, high = (-7, 8) if kind == TensorProto.INT4 else (-127, 128)
    weight = helper.make_tensor("w", kind, (16, 12), draw.integers(low, high, (16, 12)).reshape(-1).tolist())
    scale = numpy_helper.from_array(draw.uniform(0.01, 1, (16, 12)[axis]).astype(np.float32), "scale")
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("DequantizeLinear", ["w", "scale"], ["wide"], axis=axis),
        helper.make_node("MatMul", ["r", "wide"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", (1, 16)), ("y", (1, 12)))]
    graph = helper.make_graph(nodes, "dense", ends[:1], ends[1:], [weight, scale])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.mark.parametrize(("axis", "kept"), [(0, False), (1, True)])
def test_scales_along_the_summed_axis_are_worked_in(axis: int, kept: bool, tmp_path: Path) -> None:
    """OpenVINO is wrong about those; all engines agree on what is left."""
    errors, pieces = executed(dense_model(tmp_path / "m.onnx", axis), tmp_path, 6)
    assert max(errors) < (0.01 if kept else 1e-5)
    types = {node.op_type for piece in pieces for node in piece.graph.node}
    assert ("DequantizeLinear" in types) is kept


@pytest.mark.parametrize("axis", [0, 1])
def test_four_bit_weights_can_be_cut(axis: int, tmp_path: Path) -> None:
    """Two numbers are in a byte: they are widened before."""
    errors, _ = executed(dense_model(tmp_path / "m.onnx", axis, TensorProto.INT4), tmp_path, 6)
    assert max(errors) < 0.01


@pytest.mark.parametrize("format_name", ["onnxruntime", "onnxruntime-annotated", "openvino", "ncnn"])
def test_segments_that_read_the_same_int8_weights(format_name: str, tmp_path: Path) -> None:
    """Each has an operator of its own that widens them."""
    path = narrow_weights(tmp_path / "m.onnx")
    plans = [p for p in random_plans(path, 80) if not p.splits and len(p.processors) == 2]
    pairs = [(p, [next(s for s in p.segments if name in s.nodes) for name in ("c", "again")]) for p in plans]
    apart = next(plan for plan, (one, other) in pairs if one != other)
    exported(apart, path, format_name, tmp_path / "out")
    found = validate_bundle(tmp_path / "out", repeats=1)
    assert found.ok, found.checks


def test_a_bundle_does_not_say_that_it_rounds(tmp_path: Path) -> None:
    """Whether it does is looked up in its files: outputs that are 3 % off are wrong where nothing is rounded."""
    path = narrow_weights(tmp_path / "m.onnx")
    exported(random_plans(path, 1)[0], path, "onnxruntime", tmp_path / "out")
    sample = tmp_path / "out" / "sample-output-0.npy"
    np.save(sample, np.load(sample) * np.float32(1.03))
    reseal(tmp_path / "out")
    assert not validate_bundle(tmp_path / "out", repeats=1).ok


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    data=st.data(),
    unsigned=st.booleans(),
    zero=st.booleans(),
    seed=st.integers(0, 99),
)
def test_dequantizing_is_onnxs(shape: list[int], data: st.DataObject, unsigned: bool, zero: bool, seed: int) -> None:
    """For one scale, one for each index of an axis, one for each block along it."""
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = shape[axis]
    block = data.draw(st.sampled_from([0, *(b for b in range(1, size + 1) if size % b == 0 and len(shape) > 1)]))
    scale_shape = list(shape)
    scale_shape[axis] = size // block if block else size
    of_scale = tuple(scale_shape) if block else data.draw(st.sampled_from([(), (size,)]))
    draw, kind = np.random.default_rng(seed), np.uint8 if unsigned else np.int8
    values = [draw.integers(0, 120, shape).astype(kind), draw.uniform(0.1, 2, of_scale).astype(np.float32)]
    values += [draw.integers(0, 50, of_scale).astype(kind)] if zero else []
    names = ["x", "scale", "zero"][: len(values)]
    given_block = {"block_size": block} if block else {}
    node = helper.make_node("DequantizeLinear", names, ["y"], axis=axis, **given_block)
    infos = [onnx.ValueInfoProto(name=name) for name in names]
    graph = helper.make_graph([node], "one", infos, [onnx.ValueInfoProto(name="y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    wanted = ReferenceEvaluator(model).run(None, dict(zip(names, values, strict=True)))[0]
    np.testing.assert_allclose(dequantized(node, values), wanted, rtol=1e-6)
