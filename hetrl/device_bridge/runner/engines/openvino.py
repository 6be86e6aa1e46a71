"""OpenVINO on CPU cores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hetrl.device_bridge.runner.engines.base import Array, Engine, Session
from hetrl.device_bridge.runner.job import Piece

_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}  # as OpenVINO spells them


@cache
def _core() -> Any:
    """OpenVINO's core, made on all cores: those of the thread that makes it are the whole machine to it, for good."""
    import openvino

    pinned = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        core = openvino.Core()
        core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin, which looks at the cores
    finally:
        os.sched_setaffinity(0, pinned)
    return core


def _precision_hint(precision: str) -> str:
    """:raises NotImplementedError: the processor has no such arithmetic, and would silently use another."""
    able = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision not in _PRECISIONS or precision.upper() not in able:
        raise NotImplementedError(f"OpenVINO does not compute in {precision} on this CPU, but in {', '.join(able)}")
    return _PRECISIONS[precision]


class OpenVinoSession(Session):
    """An infer request on the caller's arrays."""

    def __init__(self, piece: Piece, folder: Path, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        import openvino

        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(len(piece.cores)),
            "INFERENCE_PRECISION_HINT": _precision_hint(piece.precision),
            "ENABLE_CPU_PINNING": False,  # the executor pins the thread that calls
        }
        self._model = _core().compile_model(str(folder / piece.files[0]), "CPU", settings)
        self._request = self._model.create_infer_request()
        for port, array in zip(piece.reads, inputs, strict=True):
            self._request.set_tensor(self._model.input(port.name), openvino.Tensor(array, shared_memory=True))
        for port, array in zip(piece.writes, outputs, strict=True):
            self._request.set_tensor(self._model.output(port.name), openvino.Tensor(array, shared_memory=True))
        self._arrays = (*inputs, *outputs)

    def run(self) -> None:
        self._request.infer(share_outputs=True)


class OpenVino(Engine):
    """The library `openvino`: one thread for each of a piece's cores; precisions fp32, bf16 and fp16."""

    name = "openvino"

    def version(self) -> str:
        import openvino

        return str(openvino.__version__).split("-")[0]

    def load(self, piece: Piece, folder: Path, inputs: Sequence[Array], outputs: Sequence[Array]) -> Session:
        return OpenVinoSession(piece, folder, inputs, outputs)


ENGINE = OpenVino()
