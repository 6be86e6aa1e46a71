"""The runner with its real executor and ONNX Runtime, over the channel to this machine."""

import numpy as np
from onnx import TensorProto, helper

from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.channel import LocalChannel
from hetrl.device_bridge.runner.arrays import pack_arrays
from hetrl.device_bridge.runner.job import Job, Piece, Port, TensorInfo
from hetrl.device_bridge.runner.protocol import Report, Request
from hetrl.device_bridge.runner.sampling import Sampling
from hetrl.device_bridge.runner_client import RunnerClient
from hetrl.measurement import Failure


def model(factor: float) -> bytes:
    """x times a constant, a thousand numbers."""
    shape = [1000]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("w", TensorProto.FLOAT, [1], [factor])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


def job(file: str, reference: str | None = None) -> Job:
    tensors = (TensorInfo("x", (1000,), "float32"), TensorInfo("y", (1000,), "float32"))
    piece = Piece(0, "cpu0/onnxruntime/fp32", (file,), (0,), (Port("x", "x"),), (Port("y", "y"),))
    return Job(tensors, ("x",), ("y",), (piece,), reference)


def test_a_model_is_run_compared_and_checked(tmp_path):
    store = BlobStore(tmp_path)
    x = np.linspace(-1, 1, 1000, dtype=np.float32)
    twice, thrice = store.put(model(2), ".onnx"), store.put(model(3), ".onnx")
    inputs, reference = store.put(pack_arrays([x]), ".npz"), store.put(pack_arrays([2 * x]), ".npz")
    sampling = Sampling(max_s=0.3)
    with RunnerClient(LocalChannel(store), store) as client:
        report = client.measure(job(twice, reference), Request(inputs=inputs, sampling=sampling))
        assert isinstance(report, Report), report
        assert report.output_error == 0 and 0 < report.latency_ms < 100 and len(report.timeline) == 1
        wrong = client.measure(job(thrice, reference), Request(inputs=inputs, max_output_error=1e-3))
        assert wrong.kind is Failure.WRONG_OUTPUT
        unchecked = client.compare([job(twice), job(thrice)], Request(inputs=inputs, sampling=sampling))
        assert [report.output_error for report in unchecked] == [None, None]
        broken = client.measure(job(store.put(b"no model", ".onnx")), Request(inputs=inputs))
        assert broken.kind is Failure.UNSUPPORTED
        missing = client.measure(job("0" * 32 + ".onnx"), Request(inputs=inputs))
        assert missing.kind is Failure.LOST and "is not in" in missing.message
        versions = {engine.name: engine.version for engine in client.hello().engines}
        assert versions["onnxruntime"] is not None
