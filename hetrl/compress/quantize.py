"""int8 by ONNX Runtime's static quantizer: weights per channel, activations per tensor, as QuantizeLinear and
DequantizeLinear pairs around float operators, which runtimes fuse into int8 kernels.

What takes no part in that, or loses too much by it (softmax, normalization layers, sigmoids), stays float.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec
import onnx
from onnx import TensorProto, version_converter

from hetrl.compress.folding import folded
from hetrl.compress.quiet import quiet
from hetrl.compress.running import first_line, require_runtime
from hetrl.compress.weights import LARGEST_INLINE_BYTES, save_model
from hetrl.errors import ModelError, UsageError
from hetrl.graph.single import Array, plain_domain

LOWEST_OPSET = 13  # scales per channel
_ENTROPY_BINS = 256  # of its 128 default ones none would ever be cut off
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Operators with int8 kernels, and those that only move numbers between them.
OPERATORS = (
    *_WEIGHTED, "Add", "Mul", "Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat",
    "Split", "Slice", "Pad", "Resize", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose",
)  # fmt: skip


class Calibration(StrEnum):
    """How the ranges of activations follow from samples.

    MINMAX takes the extremes, PERCENTILE cuts off the outermost 0.001 %. ENTROPY clips where the quantized distribution
    is nearest to the original by the Kullback-Leibler divergence (Migacz, "8-bit inference with TensorRT", GTC 2017);
    ONNX Runtime's search for it takes seconds per tensor, and with few samples it clips hard.
    """

    MINMAX = "minmax"
    ENTROPY = "entropy"
    PERCENTILE = "percentile"


class QuantizationReport(msgspec.Struct, frozen=True):
    """What became int8.

    :param samples: with which it was calibrated.
    :param int8: operators whose weights are int8 now.
    :param kept: those whose weights are still float, and why.
    """

    samples: int
    int8: int
    kept: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Quantized:
    """The model with int8 weights, and what was done."""

    model: onnx.ModelProto
    report: QuantizationReport


def quantize(
    model: onnx.ModelProto, samples: Iterable[Mapping[str, Array]], *, calibration: Calibration = Calibration.MINMAX
) -> Quantized:
    """A complete float32 model in int8; inputs and outputs stay float32.

    :param samples: values of all inputs by name, one mapping per run.
    :raises MissingExtra: ONNX Runtime is not installed.
    :raises UsageError: no samples.
    :raises ModelError: ONNX Runtime does not take the model.
    """
    require_runtime("int8 quantization")
    prepared = folded(_of_opset(model))
    for node in prepared.graph.node:
        node.name = node.name or node.output[0]  # the quantizer tells nodes apart by name
    reader = _Reader(samples)
    try:
        with quiet():
            result = _quantized(prepared, reader, calibration)
    except Exception as error:  # anything, from its own and from ONNX Runtime's
        raise ModelError(f"ONNX Runtime cannot quantize the model: {first_line(error)}") from error
    _canonical(result)
    return Quantized(result, QuantizationReport(reader.count, *_int8_weights(result)))


def _quantized(model: onnx.ModelProto, reader: _Reader, calibration: Calibration) -> onnx.ModelProto:
    """What `onnxruntime.quantization.quantize_static` does, with bins that an entropy can be told from."""
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, create_calibrator

    methods = {
        Calibration.MINMAX: CalibrationMethod.MinMax,
        Calibration.ENTROPY: CalibrationMethod.Entropy,
        Calibration.PERCENTILE: CalibrationMethod.Percentile,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_model(model, path)
        calibrator = create_calibrator(
            path,
            list(OPERATORS),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=methods[calibration],
            use_external_data_format=sum(len(t.raw_data) for t in model.graph.initializer) > LARGEST_INLINE_BYTES,
            extra_options={"num_bins": _ENTROPY_BINS} if calibration is Calibration.ENTROPY else {},
        )
        while reader.more:  # one at a time: what is collected stays in memory until it is summed up
            calibrator.collect_data(reader)
        ranges = calibrator.compute_data()
    nothing: list[str] = []
    quantizer = QDQQuantizer(
        model, True, False, QuantType.QInt8, QuantType.QUInt8, ranges, nothing, nothing, list(OPERATORS), {}
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    return result


class _Reader:
    """A `CalibrationDataReader`, which ONNX Runtime knows by its method alone; it ends after each sample."""

    def __init__(self, samples: Iterable[Mapping[str, Array]]) -> None:
        self.count = 0
        self._samples = iter(samples)
        self._next = next(self._samples, None)
        self._pause = False
        if self._next is None:
            raise UsageError("int8 needs at least one sample to calibrate with")

    @property
    def more(self) -> bool:
        return self._next is not None

    def get_next(self) -> dict[str, Array] | None:
        self._pause = not self._pause
        if not self._pause or self._next is None:
            return None
        sample, self._next = self._next, next(self._samples, None)
        self.count += 1
        return dict(sample)


def _of_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = next((o.version for o in model.opset_import if not plain_domain(o.domain)), 0)
    if any(t.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16) for t in model.graph.initializer):
        raise ModelError("the model has weights of half precision; int8 starts from float32")
    if opset >= LOWEST_OPSET:
        return model
    try:
        return version_converter.convert_version(model, LOWEST_OPSET)
    except Exception as error:
        raise ModelError(
            f"the model has opset {opset}, and int8 needs {LOWEST_OPSET}: {first_line(error)}", "export it anew"
        ) from error


def _canonical(model: onnx.ModelProto) -> None:
    """The same bytes whenever it is made, in whatever order the quantizer adds its scales."""
    tensors = sorted(model.graph.initializer, key=lambda tensor: tensor.name)
    copies = [TensorProto.FromString(tensor.SerializeToString()) for tensor in tensors]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copies)
    del model.graph.value_info[:]


def _int8_weights(model: onnx.ModelProto) -> tuple[int, tuple[tuple[str, str], ...]]:
    maker = {name: node for node in model.graph.node for name in node.output if name}
    stored = {tensor.name for tensor in model.graph.initializer}
    count, kept = 0, []
    for node in model.graph.node:
        weight = maker.get(node.input[1]) if node.op_type in _WEIGHTED else None
        if weight is not None and weight.op_type == "DequantizeLinear" and weight.input[0] in stored:
            count += 1
        elif any(name in stored for name in node.input[1:2]) and node.op_type in _WEIGHTED:
            kept.append((node.output[0], "the quantizer leaves its weights float"))
        elif node.op_type in ("LSTM", "GRU", "RNN"):
            kept.append((node.output[0], f"{node.op_type} stays float"))
    return count, tuple(kept)
