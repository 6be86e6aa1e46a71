"""The packages that read what the text formats write: MNN runs its paths, LiteRT takes its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hetrl.device_bridge.spec import load_spec
from hetrl.export import mnn, tflite
from hetrl.graph.reader import load_graph
from hetrl.graph.single import Array
from tests.text_help import BRANCH_WEIGHTS, CPU, GPU, LITE_CPU, LITE_GPU, Layer, alone, net, placed, written
from tests.tiny_models import save_tiny_cnn

pytestmark = pytest.mark.filterwarnings("ignore")  # these packages' own, on import
NPU = "npu/tflite/fp16"


def test_mnn_runs_the_paths(tmp_path: Path) -> None:
    """CPU, OpenCL (or the CPU, where there is none), CPU: together what ONNX Runtime makes of the model."""
    MNN = pytest.importorskip("MNN")
    onnxruntime = pytest.importorskip("onnxruntime")
    import _tools  # MNN's converter; its command would install a package and report use

    model = save_tiny_cnn(tmp_path / "tiny.onnx")
    graph = load_graph(model)
    plan = placed(graph, {"conv2": alone(GPU)}, alone(CPU))
    out = written(mnn.EXPORTER, plan, graph, tmp_path / "out")
    paths = json.loads((out / mnn.FILE).read_text())["paths"]
    assert [path["backend"] for path in paths] == ["CPU", "OPENCL", "CPU"]
    converted = str(tmp_path / "tiny.mnn")
    command = ["mnnconvert", "-f", "ONNX", "--modelFile", str(model), "--MNNModel", converted, "--bizCode", "hetrl"]
    _tools.mnnconvert(command)
    data = np.random.default_rng(1).normal(size=(1, 3, 16, 16)).astype(np.float32)
    made: dict[str, Any] = {"data": MNN.expr.const(data, data.shape, MNN.expr.NCHW)}
    for path in paths:
        config = {key: tuple(value) if isinstance(value, list) else value for key, value in path.items()}
        runtime = MNN.nn.create_runtime_manager((config,))
        module = MNN.nn.load_module_from_file(
            converted, path["inputPaths"], path["outputPaths"], runtime_manager=runtime
        )
        results = module.onForward([made[name] for name in path["inputPaths"]])
        made.update(zip(path["outputPaths"], results, strict=True))
    (wanted,) = onnxruntime.InferenceSession(str(model)).run(None, {"data": data})
    found = np.array(MNN.expr.convert(made["logits"], MNN.expr.NCHW).read())
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def tiny_tflite(path: Path, weight: Array) -> Path:
    """A 3x3 convolution with a ReLU over `data` 1x16x16x3, in TensorFlow Lite's file format."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name: str, shape: tuple[int, ...], buffer: int) -> Any:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, list(shape), schema.TensorType.FLOAT32, buffer
        return made

    buffers = [schema.BufferT() for _ in range(3)]
    for buffer, value in zip(buffers[1:], (weight, np.zeros(len(weight), np.float32)), strict=True):
        buffer.data = np.frombuffer(value.tobytes(), np.uint8)
    options = schema.Conv2DOptionsT()
    options.padding, options.fusedActivationFunction = schema.Padding.SAME, schema.ActivationFunctionType.RELU
    options.strideW = options.strideH = options.dilationWFactor = options.dilationHFactor = 1
    conv, code = schema.OperatorT(), schema.OperatorCodeT()
    conv.inputs, conv.outputs = [0, 1, 2], [3]
    conv.builtinOptionsType, conv.builtinOptions = schema.BuiltinOptions.Conv2DOptions, options
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CONV_2D
    graph, model = schema.SubGraphT(), schema.ModelT()
    shapes = {"data": ((1, 16, 16, 3), 0), "w": (weight.shape, 1), "b": ((len(weight),), 2)}
    graph.tensors = [tensor(name, *rest) for name, rest in shapes.items()]
    graph.tensors.append(tensor("conv", (1, 16, 16, len(weight)), 0))
    graph.inputs, graph.outputs, graph.operators = [0], [3], [conv]
    model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], buffers, [code]
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


@pytest.mark.parametrize("processor", [LITE_CPU, NPU, LITE_GPU])
def test_litert_takes_the_options(processor: str, tmp_path: Path) -> None:
    """Without an NPU LiteRT runs on the CPU; without a GPU it takes the options, and no model."""
    pytest.importorskip("ai_edge_litert")
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.options import CpuOptions, GpuOptions, HardwareAccelerator, Options

    layers: list[Layer] = [("Conv", ["data", "w_a"], "a"), ("Relu", ["a"], "positive")]
    graph = net(layers, ["positive"], BRANCH_WEIGHTS)
    spec = load_spec("d2" if processor == NPU else "d1")
    out = written(tflite.EXPORTER, placed(graph, {}, alone(processor)), graph, tmp_path / "out", spec)
    found = json.loads((out / tflite.LITERT).read_text())
    accelerators = HardwareAccelerator(0)
    for name in found["hardware_accelerators"]:
        accelerators |= HardwareAccelerator[name]
    gpu = GpuOptions(**found["gpu_options"]) if "gpu_options" in found else None
    options = Options(accelerators, CpuOptions(**found["cpu_options"]), gpu)
    if processor == LITE_GPU:
        assert options.gpu_options.enforce_f32 is False
        return
    random = np.random.default_rng(1)
    weight, data = (random.normal(size=s).astype(np.float32) for s in ((8, 3, 3, 3), (1, 16, 16, 3)))
    model = CompiledModel.from_file(str(tiny_tflite(tmp_path / "tiny.tflite", weight)), options=options)
    inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
    inputs[0].write(data)
    model.run_by_index(0, inputs, outputs)
    padded = np.pad(data, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))  # 1, 16, 16, 3, 3, 3
    wanted = np.maximum(np.einsum("bhwcij,oijc->bhwo", windows, weight), 0)
    assert np.abs(outputs[0].read(wanted.size, np.float32) - wanted.ravel()).max() <= 1e-4 * wanted.max()
