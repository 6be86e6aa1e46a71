"""Files that are no valid model: one clear sentence each, no traceback, nothing printed."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from hetrl import zoo
from hetrl.errors import HetrlError, ModelError, UnresolvedShape, UsageError
from hetrl.graph import load_graph, parse_input_shape
from hetrl.graph.reader import graph_from_model

Info = onnx.ValueInfoProto


def tensor(name: str, *shape: int | str | None) -> Info:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[Info],
    outputs: list[Info],
    weights: dict[str, tuple[int, ...]] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in (weights or {}).items()]
    graph = helper.make_graph(nodes, "bad", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture(autouse=True)
def nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert capfd.readouterr() == ("", "")


def _relu_model() -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"])], [tensor("x", 1, 4)], [tensor("y", 1, 4)])


def test_files_that_are_no_model(tmp_path: Path) -> None:
    def refuse(content: bytes | None, message: str, name: str = "m.onnx") -> None:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ModelError, match=message) as caught:
            load_graph(path)
        assert str(path) in str(caught.value)

    refuse(None, "does not exist", "gone.onnx")
    refuse(b"", "is empty")
    refuse(b"import torch\nprint('no model')\n", "no ONNX file")
    refuse(b"PK\x03\x04" + bytes(200), "no ONNX file")
    whole = zoo.build("resnet18").SerializeToString()
    refuse(whole[: len(whole) // 2], "truncated")
    refuse(_relu_model().SerializeToString()[:4], "truncated|no ONNX file")
    (tmp_path / "folder.onnx").mkdir()
    refuse(None, "is a folder", "folder.onnx")
    bare = onnx.ModelProto(ir_version=8)
    refuse(bare.SerializeToString(), "holds no graph")


@pytest.mark.parametrize("cut", range(1, 40))
def test_truncation_anywhere_is_an_error_or_a_smaller_model(tmp_path: Path, cut: int) -> None:
    whole = zoo.build("resnet18").SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: len(whole) * cut // 40])
    with pytest.raises(ModelError):
        load_graph(path)


def _cycle() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Add", ["x", "c"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
        helper.make_node("Relu", ["b"], ["c"], name="third"),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    return model(nodes, [tensor("x", 1, 4)], [tensor("y", 1, 4)])


def _undefined() -> onnx.ModelProto:
    return model([helper.make_node("Add", ["x", "ghost"], ["y"])], [tensor("x", 1, 4)], [tensor("y", 1, 4)])


def _duplicate() -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["y"])]
    return model(nodes, [tensor("x", 1, 4)], [tensor("y", 1, 4)])


def _shadows_input() -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["x"], ["x"])], [tensor("x", 1, 4)], [tensor("x", 1, 4)])


def _same_input_twice() -> onnx.ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"])
    return model([node], [tensor("x", 1, 4), tensor("x", 1, 4)], [tensor("y", 1, 4)])


def _no_output() -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"])], [tensor("x", 1, 4)], [])


def _output_unmade() -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"])], [tensor("x", 1, 4)], [tensor("z", 1, 4)])


def _no_input() -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["w"], ["y"])], [], [tensor("y", 4)], {"w": (4,)})


def _no_operators() -> onnx.ModelProto:
    return model([], [tensor("x", 1, 4)], [tensor("x", 1, 4)])


def _only_constants() -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["w"], ["y"])], [tensor("x", 1)], [tensor("y", 4)], {"w": (4,)})


def _bad_shapes() -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="head")
    return model([node], [tensor("x", 1, 4)], [tensor("y", 1, 5)], {"w": (3, 5)})


def _bad_channels() -> onnx.ModelProto:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="stem")
    return model([node], [tensor("x", 1, 4, 8, 8)], [tensor("y", 1, 5, 8, 8)], {"w": (5, 3)})


def _sequence() -> onnx.ModelProto:
    nodes = [helper.make_node("SequenceConstruct", ["x"], ["s"]), helper.make_node("SequenceLength", ["s"], ["y"])]
    return model(nodes, [tensor("x", 1)], [helper.make_tensor_value_info("y", TensorProto.INT64, ())])


def _no_opset() -> onnx.ModelProto:
    broken = _relu_model()
    del broken.opset_import[:]
    return broken


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_cycle, "cycle.*|'first'.*'second'.*'third'"),
        (_undefined, "'y' .Add. reads the tensor 'ghost', which nothing makes"),
        (_duplicate, "two nodes or inputs make the tensor 'y'"),
        (_shadows_input, "two nodes or inputs make the tensor 'x'"),
        (_same_input_twice, "'x' is declared twice"),
        (_no_output, "has no output"),
        (_output_unmade, "nothing makes the model's output 'z'"),
        (_no_input, "has no input"),
        (_no_operators, "has no operators"),
        (_only_constants, "has no operators"),
        (_bad_shapes, "'head' .MatMul. does not fit its inputs"),
        (_bad_channels, "'stem' .Conv. does not fit its inputs"),
        (_sequence, "is no tensor"),
        (_no_opset, "opset"),
    ],
)
def test_graphs_that_make_no_sense(make: Callable[[], onnx.ModelProto], message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(make().SerializeToString())
    with pytest.raises(ModelError, match=message) as caught:
        load_graph(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_symbolic_sizes() -> None:
    net = model([helper.make_node("Relu", ["data"], ["y"])], [tensor("data", "batch", 3, "h", "w")], [tensor("y")])
    with pytest.raises(UnresolvedShape, match=r"'data' has the shape batchx3xhxw.*--input-shape data:1x3x224x224"):
        graph_from_model(net, name="net")
    graph = graph_from_model(net, name="net", input_shapes={"data": (1, 3, 8, 9)})
    assert graph.tensor_by_name["y"].shape == (1, 3, 8, 9)
    for shape, message in [
        ((1, 3, 8), "has 3 sizes, the model's input has 4"),
        ((1, 3, 0, 8), "size below 1"),
        ((1, 3, -8, 8), "size below 1"),
        ((1, 4, 8, 8), "the model fixes batchx3xhxw"),
    ]:
        with pytest.raises(UsageError, match=message):
            graph_from_model(net, name="net", input_shapes={"data": shape})
    with pytest.raises(UsageError, match=r"no input 'dta'.*'data'"):
        graph_from_model(net, name="net", input_shapes={"dta": (1, 3, 8, 8)})


def test_unnamed_batch_and_unknown_rank() -> None:
    net = model([helper.make_node("Relu", ["x"], ["y"])], [tensor("x", None, 3, 8, 8)], [tensor("y")])
    with pytest.raises(UnresolvedShape, match=r"shape \?x3x8x8.*--input-shape x:1x3x8x8"):
        graph_from_model(net, name="net")
    net.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UnresolvedShape, match=r"unknown shape.*--input-shape x:1x3x224x224"):
        graph_from_model(net, name="net")
    assert graph_from_model(net, name="net", input_shapes={"x": (2, 5)}).tensor_by_name["y"].shape == (2, 5)


def test_a_symbol_given_once_holds_everywhere() -> None:
    net = model(
        [helper.make_node("Add", ["a", "b"], ["y"])], [tensor("a", "n", 4), tensor("b", "n", 4)], [tensor("y", "n", 4)]
    )
    assert graph_from_model(net, name="net", input_shapes={"a": (7, 4)}).tensor_by_name["b"].shape == (7, 4)
    with pytest.raises(UsageError, match="does not fit the input 'b'"):
        graph_from_model(net, name="net", input_shapes={"a": (7, 4), "b": (8, 4)})


def test_data_dependent_shape() -> None:
    net = model([helper.make_node("NonZero", ["x"], ["y"], name="nz")], [tensor("x", 4)], [tensor("y")])
    net.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(UnresolvedShape, match=r"'nz' .NonZero., depends on the data"):
        graph_from_model(net, name="net")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data:1x3x224x224", ("data", (1, 3, 224, 224))),
        ("input:0:1x8", ("input:0", (1, 8))),
        ("x:5", ("x", (5,))),
        (" x :1X2", ("x", (1, 2))),
    ],
)
def test_parse_input_shape(text: str, expected: tuple[str, tuple[int, ...]]) -> None:
    assert parse_input_shape(text) == expected


@pytest.mark.parametrize(
    "text", ["", "data", "data:", ":1x3", "data:1x", "data:1,3", "data:-1x3", "data:0x3", "d:1x3.5"]
)
def test_parse_input_shape_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="data:1x3x224x224"):
        parse_input_shape(text)


def test_errors_are_hetrl_errors_for_random_bytes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    whole = bytearray(_relu_model().SerializeToString())
    path = tmp_path / "fuzz.onnx"
    for _ in range(150):
        broken = bytearray(whole)
        for position in random.integers(0, len(broken), 3):
            broken[position] = random.integers(0, 256)
        path.write_bytes(broken)
        try:
            load_graph(path)
        except HetrlError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "body", ["big = ConstantOfShape <value = float[1] {0}> (n)", "big = Cast <to = 1> (wide)\n wide = Range(z, n0, o)"]
)
def test_a_small_file_cannot_ask_for_all_memory(body: str, tmp_path: Path) -> None:
    """Shapes are inferred without building what the model would build."""
    lines = "\n".join(reversed(body.split("\n ")))
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    bomb (float[1] x) => (float[m] y)
    <int64[1] n = {{1099511627776}}, int64 n0 = {{8589934592}}, int64 z = {{0}}, int64 o = {{1}}>
    {{ {lines}
      y = Add(x, big) }}
    """
    path = tmp_path / "bomb.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, limit[1]))
    try:
        graph = load_graph(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert graph.tensor_by_name["y"].elements >= 1 << 33
