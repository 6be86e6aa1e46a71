"""Small ONNX models, run by ONNX Runtime and by ncnn as the runner runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hetrl.device_bridge.runner.engines.ncnn import ENGINE
from hetrl.device_bridge.runner.job import Piece, Port
from hetrl.partition.ncnn import to_ncnn

Array = NDArray[Any]
Shape = tuple[int, ...]


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Sequence[str],
    weights: Mapping[str, Array] | None = None,
    opset: int = 20,
) -> onnx.ModelProto:
    """A model whose output shapes are inferred."""
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made, data_prop=True)


def run_onnx(made: onnx.ModelProto, given: Mapping[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(made.SerializeToString(), options)
    return list(session.run(None, dict(given)))


def write(made: onnx.ModelProto, folder: Path) -> tuple[str, str]:
    files = to_ncnn(made)
    (folder / "m.param").write_text(files.param)
    (folder / "m.bin").write_bytes(files.bin)
    return "m.param", "m.bin"


def piece(files: tuple[str, ...], reads: Sequence[str], writes: Sequence[str], device: int | None = None) -> Piece:
    processor = "cpu/ncnn/fp32" if device is None else "gpu/ncnn/fp32"
    ports = tuple(Port(name, name) for name in reads), tuple(Port(name, name) for name in writes)
    return Piece(0, processor, files, (0,), *ports, device)


def difference(made: onnx.ModelProto, folder: Path, device: int | None = None) -> float:
    """Largest difference between the two runtimes over the largest value, of two runs on different data."""
    inputs = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in made.graph.input}
    random = np.random.default_rng(1)
    arrays = {name: np.empty(shape, np.float32) for name, shape in inputs.items()}
    outputs: list[Array] = []
    session = None
    worst = 0.0
    for _ in range(2):
        for array in arrays.values():
            array[...] = random.normal(size=array.shape)
        before = {name: array.copy() for name, array in arrays.items()}
        wanted = run_onnx(made, arrays)
        if session is None:
            outputs = [np.full_like(array, np.nan) for array in wanted]
            names = [value.name for value in made.graph.output]
            described = piece(write(made, folder), list(arrays), names, device)
            session = ENGINE.load(described, folder, list(arrays.values()), outputs)
        session.run()
        for name, array in arrays.items():
            assert np.array_equal(array, before[name]), f"the input {name} was written to"
        worst = max(
            worst, *(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(outputs, wanted, strict=True))
        )
    assert session is not None
    session.close()
    return worst
