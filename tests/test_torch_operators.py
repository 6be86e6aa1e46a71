"""Every operator of the torch reader against ONNX Runtime, and its gradients."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from hetrl.errors import ModelError
from hetrl.fidelity import largest_error
from hetrl.finetune.graph_module import GraphModule
from hetrl.finetune.operators.registry import OPERATORS
from tests.operator_cases import CASES, Array, Attribute, Case, X, c, normal, positive


def runtime(model: onnx.ModelProto, feed: dict[str, Array]) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))


def in_torch(module: GraphModule, *inputs: Array) -> dict[str, Array]:
    with torch.no_grad():
        results = module.eval()(*(torch.tensor(value) for value in inputs))
    return {name: result.numpy() for name, result in zip(module.output_names, results, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_runtime(case: Case) -> None:
    model = case.model()
    wanted = runtime(model, {"i0": case.feed()})
    got = in_torch(GraphModule(model, (), ()), case.feed())
    for name, value in wanted.items():
        assert got[name].shape == value.shape and got[name].dtype == value.dtype
    assert largest_error(got, wanted) < 1e-4


def test_no_operator_is_left_out() -> None:
    assert {case.op for case in CASES} == set(OPERATORS)


DIFFERENTIABLE = [
    case for case in CASES if case.op.startswith(("Conv", "Gemm", "MatMul", "Batch", "Layer", "Group", "Inst", "PRelu"))
]


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_gradients_reach_all_weights(case: Case) -> None:
    module = GraphModule(case.model(), ["i1", "i2"], ["i3", "i4"])
    (output,) = module.train()(torch.tensor(case.feed()))
    (output * torch.randn(output.shape)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and bool((parameter.grad != 0).any()), name


@settings(max_examples=25)
@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    dilation=st.integers(1, 2),
    size=st.tuples(st.integers(6, 9), st.integers(6, 9)),
    op=st.sampled_from(["Conv", "ConvTranspose", "MaxPool", "AveragePool"]),
)
def test_windows_of_any_kind(
    kernel: int, stride: int, pads: tuple[int, ...], dilation: int, size: tuple[int, int], op: str
) -> None:
    pads = tuple(min(pad, kernel - 1) for pad in pads)  # pools may not have windows of pads alone
    x = np.random.default_rng(0).standard_normal((1, 2, *size)).astype(np.float32)
    attributes: dict[str, Attribute] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": list(pads)}
    if op != "AveragePool":
        attributes["dilations"] = [dilation] * 2
    weights = [np.ones((2, 2, kernel, kernel), np.float32)] if op.startswith("Conv") else []
    model = Case(op, [x, *weights], attributes).model()
    assert largest_error(in_torch(GraphModule(model, (), ()), x), runtime(model, {"i0": x})) < 1e-4


def test_dropout_drops_in_training_only() -> None:
    module = GraphModule(c("Dropout", np.ones((1, 1000), np.float32), np.float32(0.25)).model(), (), ())
    (dropped,) = module.train()(torch.ones(1, 1000))
    assert 0.15 < float((dropped == 0).float().mean()) < 0.35 and float(dropped.max()) == pytest.approx(1 / 0.75)


def test_batch_norm_updates_its_running_statistics_as_torch_does() -> None:
    model = c(
        "BatchNormalization", X, np.ones(6, np.float32), np.zeros(6, np.float32), *(normal(6), positive(6))
    ).model()
    module, norm = GraphModule(model, ["i1", "i2"], ["i3", "i4"]), torch.nn.BatchNorm2d(6)
    norm.load_state_dict({**norm.state_dict(), "running_mean": module.i3.clone(), "running_var": module.i4.clone()})
    (got,) = module.train()(torch.tensor(X))
    torch.testing.assert_close(got, norm.train()(torch.tensor(X)))
    torch.testing.assert_close((module.i3, module.i4), (norm.running_mean, norm.running_var))
    module.batch_statistics = False
    before = module.i3.clone()
    module(torch.tensor(X))
    assert torch.equal(before, module.i3)


def test_missing_operators_are_named_at_once() -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Fancy", ["b"], ["c"], domain="org.example"),
    ]
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 2])
    graph = helper.make_graph(nodes, "g", [info], [onnx.ValueInfoProto(name="c")])
    with pytest.raises(ModelError, match=r"Det, org\.example\.Fancy cannot be trained through"):
        GraphModule(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), (), ())


@pytest.mark.parametrize(
    "case",
    [
        c("MaxPool", X, outputs=2, kernel_shape=[2, 2]),
        c("Resize", X, None, np.array([1, 1, 2, 2], np.float32), opset=18, antialias=1, mode="linear"),
        c("BatchNormalization", X, *[positive(6)] * 4, outputs=3, training_mode=1),
        c("LayerNormalization", X, positive(9), outputs=2),
        c("ArgMax", X, select_last_index=1),
        c("Constant", note="string", value_string="no number"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_said(case: Case) -> None:
    with pytest.raises(ModelError, match=f"{case.op}.* cannot be trained: .* is not supported"):
        GraphModule(case.model(), (), ())(torch.tensor(case.feed()))


def test_a_node_that_does_not_fit_is_named() -> None:
    module = GraphModule(c("MatMul", normal(2, 3), normal(3, 4)).model(), (), ())
    with pytest.raises(ModelError, match=r"'o0' \(MatMul\) does not fit its inputs 2x5, 3x4"):
        module(torch.ones(2, 5))


def test_old_models_are_refused() -> None:
    with pytest.raises(ModelError, match="opset 7 or later, this one has 6"):
        GraphModule(c("Relu", X, opset=6).model(), (), ())
