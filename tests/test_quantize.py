"""Narrower numbers: int8 by ONNX Runtime's quantizer, float16 graphs, weights stored in 16 bits."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from hetrl.compress.folding import folded
from hetrl.compress.half import halve
from hetrl.compress.narrow import Half, narrowed
from hetrl.compress.quantize import Calibration, quantize
from hetrl.compress.quiet import quiet
from hetrl.compress.running import run_all
from hetrl.compress.weights import complete_model
from hetrl.errors import MissingExtra, ModelError, UsageError
from hetrl.fidelity import largest_error, seeded_inputs
from hetrl.graph.reader import graph_from_model, load_graph
from hetrl.zoo.builder import Builder
from hetrl.zoo.source import FileSource
from tests.compress_help import error_between, model_of, normal
from tests.digits import Digits
from tests.torch_models import GoogLeNetLike, MobileNetLike, ViTLike, export

ROOT = Path(__file__).resolve().parent.parent


def small() -> onnx.ModelProto:
    """Convolutions with BatchNormalization, a depthwise one, a shortcut, a dense layer."""
    net = Builder("small")
    x = net.conv(net.input("data", (1, 3, 16, 16)), "conv0", 8, 3, bias=False)
    x = net.activation(net.batch_norm(x, "bn0"), "relu0")
    y = net.batch_norm(net.conv(x, "depthwise", 8, 3, groups=8), "bn1")
    x = net.activation(net.add(x, y, "sum"), "relu1")
    x = net.flatten(net.global_pool(net.conv(x, "conv2", 24, 3, stride=2), "pool"), "flat")
    return net.finish(net.gemm(x, "logits", 10)).with_weights(0)


def samples(model: onnx.ModelProto, count: int = 4, start: int = 0) -> list[dict[str, np.ndarray]]:
    graph = graph_from_model(model, name="net")
    return [seeded_inputs(graph, start + index) for index in range(count)]


def from_torch(module: torch.nn.Module, folder: Path) -> onnx.ModelProto:
    return complete_model(FileSource(export(module, folder / "m.onnx", (1, 3, 32, 32))))


def mean_error(model: onnx.ModelProto, other: onnx.ModelProto) -> float:
    inputs = samples(model, 4, 100)
    pairs = zip(run_all(other, inputs), run_all(model, inputs), strict=True)
    return float(np.mean([largest_error(one, exact) for one, exact in pairs]))


# int8


@pytest.mark.parametrize("module", [MobileNetLike, GoogLeNetLike, ViTLike])
def test_int8_models_are_near_and_readable(module: type[torch.nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = from_torch(module(), tmp_path)
    done = quantize(model, samples(model))
    onnx.checker.check_model(done.model, full_check=True)
    assert 0 < mean_error(model, done.model) < 0.06
    before, after = (graph_from_model(m, name="m") for m in (model, done.model))
    assert after.macs == before.macs and after.warnings == before.warnings
    assert after.weight_bytes < 0.35 * before.weight_bytes
    assert [before.tensor_by_name[n].shape for n in before.inputs] == [
        after.tensor_by_name[n].shape for n in after.inputs
    ]
    assert after.outputs == before.outputs and after.inputs == before.inputs
    weighted = {"Conv", "Gemm"} | ({"MatMul"} if module is ViTLike else set())
    constant = sum(node.op_type in weighted and node.weight_elements > 0 for node in before.nodes)
    assert done.report.int8 == constant and done.report.kept == () and done.report.samples == 4


def test_weights_are_int8_per_channel_and_activations_uint8() -> None:
    model = small()
    done = quantize(model, samples(model)).model
    initializers = {tensor.name: tensor for tensor in done.graph.initializer}
    widened = [n for n in done.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in initializers]
    kernels = [n for n in widened if len(initializers[n.input[0]].dims) > 1]
    assert len(kernels) == 4  # three convolutions, one dense layer
    assert all(initializers[n.input[0]].data_type == TensorProto.INT8 for n in kernels)
    scales = [numpy_helper.to_array(initializers[n.input[1]]) for n in kernels]
    assert sorted(scale.size for scale in scales) == [8, 8, 10, 24]
    biases = [n for n in widened if n not in kernels]
    assert {initializers[n.input[0]].data_type for n in biases} == {TensorProto.INT32}
    quantizers = [n for n in done.graph.node if n.op_type == "QuantizeLinear"]
    assert {initializers[n.input[2]].data_type for n in quantizers} == {TensorProto.UINT8}
    assert "BatchNormalization" not in {n.op_type for n in done.graph.node}


def test_every_calibration_gives_ranges_of_its_own_and_more_samples_wider_ones() -> None:
    model = small()
    inputs = samples(model, 3)
    found = {c: quantize(model, inputs, calibration=c).model for c in Calibration}
    assert len({m.SerializeToString(deterministic=True) for m in found.values()}) == 3
    errors = {c: mean_error(model, m) for c, m in found.items()}
    assert max(errors[Calibration.MINMAX], errors[Calibration.PERCENTILE]) < 0.1
    assert errors[Calibration.MINMAX] < errors[Calibration.ENTROPY] < 1  # so few samples are clipped hard
    scale = next(n.input[1] for n in found[Calibration.MINMAX].graph.node if n.op_type == "QuantizeLinear")
    scales = [_value(quantize(model, inputs[:count]).model, scale) for count in (1, 3)]
    assert scales[0] < scales[1]
    data = np.concatenate([sample["data"].reshape(-1) for sample in inputs])
    assert scales[1] == pytest.approx((data.max() - data.min()) / 255, rel=1e-5)


def _value(model: onnx.ModelProto, name: str) -> float:
    return float(numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name)))


def test_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    model = small()
    path = tmp_path / "small.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    code = (
        "import hashlib, sys; from pathlib import Path; from hetrl.compress.quantize import quantize;"
        "from hetrl.compress.weights import complete_model; from hetrl.zoo.source import FileSource;"
        "from hetrl.fidelity import seeded_inputs; from hetrl.graph.reader import graph_from_model;"
        "m = complete_model(FileSource(Path(sys.argv[1]))); g = graph_from_model(m, name='m');"
        "r = quantize(m, [seeded_inputs(g, i) for i in range(4)]).model;"
        "print(hashlib.sha256(r.SerializeToString(deterministic=True)).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    there = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, env=environment
    )
    here = quantize(model, samples(model)).model.SerializeToString(deterministic=True)
    assert there.stdout.strip() == hashlib.sha256(here).hexdigest() and there.stderr == ""


def test_nothing_is_printed_and_logging_stays_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level, logging.root.manager.disable)
    model = small()
    quantize(model, samples(model), calibration=Calibration.PERCENTILE)
    assert (list(root.handlers), root.level, logging.root.manager.disable) == before
    assert capfd.readouterr() == ("", "")
    with pytest.raises(RuntimeError), quiet():
        print("hidden")
        logging.basicConfig(force=True)
        raise RuntimeError
    assert (list(root.handlers), root.level, logging.root.manager.disable) == before
    assert capfd.readouterr() == ("", "")


def test_old_opsets_and_unnamed_nodes() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    model = model_of(nodes, {"x": (1, 3, 8, 8)}, ["y"], {"w": normal(4, 3, 3, 3)}, opset=11)
    done = quantize(model, samples(model)).model
    assert done.opset_import[0].version >= 13 and not model.graph.node[0].name
    assert error_between(model, done) < 0.05


def test_what_int8_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    with pytest.raises(UsageError, match="at least one sample"):
        quantize(model, [])
    with pytest.raises(ModelError, match="cannot quantize"):
        quantize(model, [{"data": np.zeros((1, 3, 5, 5), np.float32)}])
    with pytest.raises(ModelError, match="half precision"):
        quantize(halve(model, Half.FLOAT16).model, samples(model))
    monkeypatch.setattr("hetrl.compress.running.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"hetrl\[host\]"):
        quantize(model, samples(small()))


def test_int8_digits_lose_at_most_a_point(digits: Digits) -> None:
    model = complete_model(FileSource(digits.model))
    with np.load(digits.train) as train, np.load(digits.test) as test:
        calibrated = quantize(model, [{"data": picture[None]} for picture in train["inputs"][:64]]).model
        pictures, labels = [{"data": picture[None]} for picture in test["inputs"]], test["labels"]
    before, after = (
        np.mean(
            [outputs["scores"].argmax() == label for outputs, label in zip(run_all(m, pictures), labels, strict=True)]
        )
        for m in (model, calibrated)
    )
    assert before > 0.97 and after >= before - 0.01


# Folding


def test_folding_keeps_the_function() -> None:
    bn = [normal(6, seed=s) for s in range(3)]
    norm = ["scale", "shift", "mean", "variance"]
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(normal(8, 6, 3, 3), "value")),
        helper.make_node("Identity", ["variance"], ["v"]),
        helper.make_node("ConvTranspose", ["x", "up", "b"], ["t"], group=2),
        helper.make_node("BatchNormalization", ["t", *norm[:3], "v"], ["tn"], epsilon=0.1),
        helper.make_node("Conv", ["tn", "c"], ["k"]),
        helper.make_node("BatchNormalization", ["k", "s8", "s8", "s8", "p8"], ["kn"]),
        helper.make_node("BatchNormalization", ["kn", "s8", "s8", "s8", "p8"], ["again"]),
        helper.make_node("Add", ["kn", "again"], ["sum"]),
        helper.make_node("GlobalAveragePool", ["sum"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Transpose", ["g"], ["gt"]),
        helper.make_node("Gemm", ["flat", "gt"], ["h"]),
        helper.make_node("BatchNormalization", ["h", *norm], ["hn"]),
        helper.make_node("Mul", ["hn", "half"], ["y"]),
        helper.make_node("Constant", [], ["half"], value=numpy_helper.from_array(np.float32(0.5), "value")),
    ]
    nodes.insert(0, nodes.pop())
    weights = {
        "up": normal(4, 3, 2, 2), "b": normal(6), "scale": bn[0], "shift": bn[1], "mean": bn[2],
        "variance": np.abs(normal(6, seed=9)) + 0.1, "s8": normal(8), "p8": np.abs(normal(8)) + 0.1, "g": normal(6, 8),
    }  # fmt: skip
    model = model_of(nodes, {"x": (1, 4, 9, 9)}, ["y"], weights)
    result = folded(model)
    onnx.checker.check_model(result, full_check=True)
    assert error_between(model, result) < 1e-5
    types = [node.op_type for node in result.graph.node]
    assert types.count("BatchNormalization") == 1  # the one behind another: its input has two readers
    assert not {"Constant", "Identity", "Transpose"} & set(types)
    assert {"tn", "kn", "hn", "y"} <= {node.output[0] for node in result.graph.node}


# Half precision


@pytest.mark.parametrize("half", list(Half))
@pytest.mark.parametrize("module", [MobileNetLike, GoogLeNetLike, ViTLike])
def test_half_precision_is_near_readable_and_half_as_large(
    module: type[torch.nn.Module], half: Half, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = from_torch(module(), tmp_path)
    done = halve(model, half)
    onnx.checker.check_model(done.model, full_check=True)
    before, after = (graph_from_model(m, name="m") for m in (model, done.model))
    assert (after.macs, after.parameters) == (before.macs, before.parameters)
    assert set(before.node_index) <= set(after.node_index)
    assert {i.type.tensor_type.elem_type for i in [*done.model.graph.input, *done.model.graph.output]} == {1}
    assert 0 < error_between(model, done.model) < (0.003 if half is Half.FLOAT16 else 0.03)
    # The branch that an exporter leaves for a squeeze reads a tensor from outside.
    computes = half is Half.FLOAT16 and module is not GoogLeNetLike
    assert (done.report.stored, done.report.computed) == (half.value, "float16" if computes else "float32")
    assert after.weight_bytes < (0.51 if computes else 0.7) * before.weight_bytes
    assert bool(done.report.kept) is not computes
    if computes:
        assert {t.dtype for t in after.tensors if t.name not in (*after.inputs, *after.outputs)} == {"float16"}


def test_operators_without_float16_keep_their_floats() -> None:
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["big"]),
        helper.make_node("ArgMax", ["big"], ["count"], axis=3),
        helper.make_node("Cast", ["count"], ["n"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["big", "n"], ["many"]),
        helper.make_node("ConstantOfShape", ["size"], ["ones"], value=numpy_helper.from_array(np.ones(1, np.float32))),
        helper.make_node("Add", ["many", "ones"], ["more"]),
        helper.make_node("Range", ["zero", "limit", "step"], ["steps"]),
        helper.make_node("Concat", ["more", "more"], ["wide"], axis=3),
        helper.make_node("Mul", ["wide", "steps"], ["y"]),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    weights = {
        "scales": np.array([1, 1, 2, 2], np.float32), "size": np.array([1, 2, 1, 1]), "zero": np.float32(0),
        "limit": np.float32(16), "step": np.float32(1),
    }  # fmt: skip
    model = model_of(nodes, {"x": (1, 2, 4, 4)}, ["y", "z"], weights)
    done = halve(model, Half.FLOAT16)
    onnx.checker.check_model(done.model, full_check=True)
    assert {name for name, _ in done.report.kept} == {"ones", "steps"}
    assert error_between(model, done.model) < 0.003
    stored = {tensor.name: tensor.data_type for tensor in done.model.graph.initializer}
    assert stored["scales.float32"] == TensorProto.FLOAT and stored["limit.float32"] == TensorProto.FLOAT


def test_numbers_beyond_half_precision_stay_inside_it() -> None:
    numbers = np.array([1e9, -3.4e38, 1e-12, 0.0, -0.25, np.inf], np.float32)
    array, outside = narrowed(numbers, Half.FLOAT16)
    assert outside and array.tolist() == [65504.0, -65504.0, 2.0**-24, 0.0, -0.25, np.inf]
    assert not narrowed(np.array([1e9, 1e-30, 0.5], np.float32), Half.BFLOAT16)[1]
    masked = model_of(
        [helper.make_node("Add", ["x", "mask"], ["m"]), helper.make_node("Softmax", ["m"], ["y"])],
        {"x": (1, 4)},
        ["y"],
        {"mask": np.array([0, 0, -3.4e38, 0], np.float32)},
    )
    done = halve(masked, Half.FLOAT16)
    assert done.report.limited == 1 and error_between(masked, done.model) < 0.003


def test_16_bit_files_keep_their_size_in_the_graph(tmp_path: Path) -> None:
    done = halve(small(), Half.BFLOAT16)
    path = tmp_path / "b.onnx"
    onnx.save(done.model, path)
    kernel = next(n for n in load_graph(path).nodes if n.id == "conv2")
    assert kernel.weight_bytes == 2 * 24 * 8 * 9 + 4 * 24  # the bias is not worth a Cast
    with pytest.raises(ModelError, match="no float32 weights"):
        halve(model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": (1, 4)}, ["y"], {}), Half.FLOAT16)
