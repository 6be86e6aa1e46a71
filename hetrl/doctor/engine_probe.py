"""Runs one operator on one engine, in a process of its own: a broken driver ends that process alone.

`python -m hetrl.doctor.engine_probe ENGINE [DEVICE]` prints JSON: the version, and the largest error of a small
convolution. `... ncnn devices` lists the Vulkan devices instead.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hetrl.device_bridge.runner.engines import find_engine
from hetrl.device_bridge.runner.job import Piece, Port

SHAPE = (1, 3, 8, 8)


def probe(engine_name: str, device: int | None) -> dict[str, object]:
    """:raises Exception: whatever the engine raises."""
    engine = find_engine(engine_name)
    version = engine.version()
    model = _model()
    x = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE) / 100
    y = np.full(SHAPE, np.nan, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        files = _files(engine_name, model, Path(folder))
        processor = f"{'cpu' if device is None else 'gpu'}/{engine_name}/fp32"
        piece = Piece(0, processor, files, (0,), (Port("x", "x"),), (Port("y", "y"),), device)
        session = engine.load(piece, Path(folder), [x], [y])
        session.run()
        session.close()
    return {"version": version, "error": float(np.abs(y - x[:, ::-1]).max())}


def _model() -> onnx.ModelProto:
    """A 1x1 convolution that turns the order of the channels around."""
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32)[::-1].reshape(3, 3, 1, 1).copy(), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "probe", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _files(engine_name: str, model: onnx.ModelProto, folder: Path) -> tuple[str, ...]:
    if engine_name == "ncnn":
        from hetrl.partition.ncnn import to_ncnn

        made = to_ncnn(model)
        (folder / "probe.param").write_text(made.param)
        (folder / "probe.bin").write_bytes(made.bin)
        return "probe.param", "probe.bin"
    onnx.save(model, folder / "probe.onnx")
    return ("probe.onnx",)


def vulkan_devices() -> dict[str, object]:
    """Names of the Vulkan devices that ncnn sees, in its order."""
    import ncnn

    return {"devices": [str(ncnn.get_gpu_info(i).device_name()) for i in range(ncnn.get_gpu_count())]}


def main(words: list[str]) -> None:
    name, *rest = words
    answer = vulkan_devices() if rest == ["devices"] else probe(name, int(rest[0]) if rest else None)
    print(f"\n{json.dumps(answer)}")


if __name__ == "__main__":
    main(sys.argv[1:])
