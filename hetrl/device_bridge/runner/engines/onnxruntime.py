"""ONNX Runtime on CPU cores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hetrl.device_bridge.runner.engines.base import Array, Engine, Session
from hetrl.device_bridge.runner.job import Piece

_SILENT = 4  # what it would log as an error it raises as well


class OnnxRuntimeSession(Session):
    """A session whose inputs and outputs are bound to the caller's arrays, so that nothing is copied."""

    def __init__(self, piece: Piece, folder: Path, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = len(piece.cores)
        options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        # Threads wait busily while a piece runs, and no longer: for some 30 ms they would take cores from what follows.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if len(piece.cores) > 1 and not set(piece.cores) >= os.sched_getaffinity(0):
            # One entry for each thread but the caller's, which the executor pins; cores count from 1 there.
            workers = ";".join(str(core + 1) for core in piece.cores[1:])
            options.add_session_config_entry("session.intra_op_thread_affinities", workers)
        path = str(folder / piece.files[0])
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        for port, array in zip(piece.reads, inputs, strict=True):
            self._binding.bind_input(port.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for port, array in zip(piece.writes, outputs, strict=True):
            self._binding.bind_output(port.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._arrays = (*inputs, *outputs)  # the binding knows addresses only
        self._call = self._session._sess.run_with_iobinding  # what `InferenceSession.run_with_iobinding` ends in

    def run(self) -> None:
        self._call(self._binding._iobinding, None)


class OnnxRuntime(Engine):
    """The library `onnxruntime`: one thread for each of a piece's cores, precision fp32."""

    name = "onnxruntime"

    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    def load(self, piece: Piece, folder: Path, inputs: Sequence[Array], outputs: Sequence[Array]) -> Session:
        if piece.precision != "fp32":
            raise NotImplementedError(f"ONNX Runtime is used in fp32 on CPUs, not in {piece.precision}")
        return OnnxRuntimeSession(piece, folder, inputs, outputs)


ENGINE = OnnxRuntime()
