"""One node with every attribute that matters, for every operator of the torch reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray
Attribute = int | float | str | list[int] | list[float] | Array
DRAW = np.random.default_rng(7)


def normal(*shape: int) -> Array:
    return DRAW.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return DRAW.uniform(0.5, 2, shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


@dataclass
class Case:
    """One node: its first operand is fed, the others are initializers; None leaves an operand out."""

    op: str
    operands: Sequence[Array | None]
    attributes: dict[str, Attribute] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    note: str = ""

    def __str__(self) -> str:
        return f"{self.op}-{self.opset}{'-' if self.note else ''}{self.note}"

    def model(self) -> onnx.ModelProto:
        names = [f"i{index}" if operand is not None else "" for index, operand in enumerate(self.operands)]
        outputs = [f"o{index}" for index in range(self.outputs)]
        given = {
            key: numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
            for key, value in self.attributes.items()
        }
        node = helper.make_node(self.op, names, outputs, **given)
        constants = [
            numpy_helper.from_array(operand, name)
            for operand, name in zip(self.operands[1:], names[1:], strict=True)
            if operand is not None
        ]
        inputs = []
        if self.operands:
            first = self.operands[0]
            assert first is not None
            inputs.append(
                helper.make_tensor_value_info("i0", helper.np_dtype_to_tensor_dtype(first.dtype), first.shape)
            )
        else:  # a graph needs an input
            inputs.append(helper.make_tensor_value_info("i0", TensorProto.FLOAT, [1]))
        graph = helper.make_graph(
            [node], "one", inputs, [onnx.ValueInfoProto(name=name) for name in outputs], constants
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8 if self.opset < 21 else 10)

    def feed(self) -> Array:
        first = self.operands[0] if self.operands else np.zeros(1, np.float32)
        assert first is not None
        return np.asarray(first)


def c(
    op: str, *operands: Array | None, opset: int = 17, outputs: int = 1, note: str = "", **attributes: Attribute
) -> Case:
    return Case(op, operands, attributes, opset, outputs, note)


X = normal(2, 6, 7, 9)
LINE, CUBE = normal(2, 4, 11), normal(1, 2, 5, 6, 7)
B = np.array([True, False, True])


def convolutions() -> list[Case]:
    w = normal(8, 6, 3, 2)
    t = normal(6, 4, 3, 2)
    return [
        c("Conv", X, w, normal(8)),
        c("Conv", X, w, note="strides-dilations", strides=[2, 3], dilations=[2, 1], pads=[1, 2, 1, 2]),
        c("Conv", X, w, normal(8), note="asymmetric", pads=[0, 1, 2, 0], kernel_shape=[3, 2]),
        c("Conv", X, w, note="same-upper", auto_pad="SAME_UPPER", strides=[2, 2]),
        c("Conv", X, w, note="same-lower", auto_pad="SAME_LOWER", strides=[2, 1]),
        c("Conv", X, w, note="valid", auto_pad="VALID"),
        c("Conv", X, normal(9, 2, 3, 3), normal(9), note="groups", group=3, pads=[1, 1, 1, 1]),
        c("Conv", X, normal(12, 1, 3, 3), note="depthwise", group=6),
        c("Conv", LINE, normal(3, 4, 3), normal(3), note="1d", pads=[1, 1]),
        c("Conv", CUBE, normal(3, 2, 2, 3, 1), normal(3), note="3d", strides=[1, 2, 1], pads=[1, 0, 0, 0, 1, 0]),
        c("ConvTranspose", X, t, normal(4)),
        c("ConvTranspose", X, t, note="strides", strides=[2, 3], pads=[1, 0, 1, 1], output_padding=[1, 2]),
        c("ConvTranspose", X, t, normal(4), note="asymmetric", strides=[2, 2], pads=[1, 0, 0, 1]),
        c("ConvTranspose", X, normal(6, 2, 3, 3), note="groups", group=3, dilations=[2, 1]),
        c("ConvTranspose", X, t, note="output-shape", strides=[2, 2], output_shape=[14, 18]),
        c("ConvTranspose", X, t, note="same-upper", strides=[2, 2], auto_pad="SAME_UPPER"),
        c("ConvTranspose", X, t, note="same-lower", strides=[2, 2], auto_pad="SAME_LOWER"),
        c("ConvTranspose", LINE, normal(4, 3, 4), normal(3), note="1d", strides=[2]),
        c("ConvTranspose", CUBE, normal(2, 3, 2, 2, 2), note="3d", strides=[2, 2, 1]),
    ]


def pools() -> list[Case]:
    found = []
    for op in ("MaxPool", "AveragePool"):
        found += [
            c(op, X, kernel_shape=[3, 2]),
            c(op, X, note="strides-pads", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
            c(op, X, note="asymmetric", kernel_shape=[3, 3], strides=[2, 1], pads=[0, 2, 1, 0]),
            c(op, X, note="ceil", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
            c(op, X, note="ceil-pads", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1, opset=19),
            c(op, X, note="ceil-long", kernel_shape=[2, 2], strides=[4, 4], pads=[0, 0, 1, 1], ceil_mode=1, opset=19),
            c(op, X, note="same-upper", kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
            c(op, X, note="same-lower", kernel_shape=[2, 3], strides=[1, 2], auto_pad="SAME_LOWER"),
            c(op, LINE, note="1d", kernel_shape=[3], strides=[2], pads=[1, 0]),
            c(op, CUBE, note="3d", kernel_shape=[2, 3, 2], strides=[1, 2, 2]),
        ]
    found += [
        c("MaxPool", X, note="dilated", kernel_shape=[2, 3], dilations=[3, 2], pads=[1, 1, 0, 0]),
        c("AveragePool", X, note="include", kernel_shape=[3, 3], pads=[1, 0, 1, 2], count_include_pad=1),
        c(
            "AveragePool",
            X,
            note="include-ceil",
            opset=19,
            kernel_shape=[3, 3],
            strides=[2, 2],
            pads=[1, 1, 1, 1],
            ceil_mode=1,
            count_include_pad=1,
        ),
    ]
    return found + [c(op, X) for op in ("GlobalAveragePool", "GlobalMaxPool")] + [c("GlobalMaxPool", LINE, note="1d")]


def normalizations() -> list[Case]:
    return [
        c("BatchNormalization", X, positive(6), normal(6), normal(6), positive(6)),
        c("BatchNormalization", normal(5, 6), positive(6), normal(6), normal(6), positive(6), note="2d", epsilon=0.1),
        c("InstanceNormalization", X, positive(6), normal(6), epsilon=1e-3),
        c("LayerNormalization", normal(2, 5, 8), positive(8), normal(8)),
        c("LayerNormalization", normal(2, 5, 8), positive(5, 8), note="two-axes", axis=1, epsilon=1e-2),
        c("GroupNormalization", X, positive(3), normal(3), opset=18, num_groups=3),
        c("GroupNormalization", X, positive(6), normal(6), opset=21, num_groups=3),
        c("RMSNormalization", normal(2, 5, 8), positive(8), opset=23),
        c("LRN", X, size=5, alpha=0.1, beta=0.6, bias=2.0),
        c("LpNormalization", X, axis=1, p=2),
        c("MeanVarianceNormalization", X),
    ]


def products() -> list[Case]:
    a = normal(3, 5)
    return [
        c("Gemm", a, normal(5, 4)),
        c("Gemm", a, normal(4, 5), normal(4), note="transB", transB=1, alpha=0.5, beta=2.0),
        c("Gemm", normal(5, 3), normal(5, 4), normal(3, 1), note="transA", transA=1),
        c("MatMul", normal(2, 3, 5), normal(5, 4)),
        c("MatMul", normal(2, 1, 3, 5), normal(4, 5, 2), note="broadcast"),
        c("MatMul", normal(3, 5), normal(5), note="vector"),
        c("Einsum", normal(2, 3, 4), normal(2, 5, 4), equation="bij,bkj->bik"),
    ]


def elementwise() -> list[Case]:
    found = [c(op, X) for op in "Abs Cos Erf Exp HardSwish Identity Mish Neg Relu Sigmoid Sign Sin".split()]
    found = [Case(f.op, f.operands, opset=18 if f.op == "Mish" else 17) for f in found]
    found += [c(op, 3 * X) for op in ("Ceil", "Floor", "Round", "Softplus", "Softsign", "Tanh", "Elu", "Celu", "Selu")]
    found += [c(op, np.abs(X) + 0.1) for op in ("Log", "Reciprocal", "Sqrt")]
    found += [c(op, X, normal(6, 1, 9)) for op in ("Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum", "Greater", "Less")]
    found += [
        c("GreaterOrEqual", X, normal(1)),
        c("LessOrEqual", X, normal(1)),
        c("Div", X, positive(7, 9)),
        c("Div", ints(-7, 7, 9), ints(2), note="integers"),
        c("Mod", ints(-7, 7, 9), ints(4)),
        c("Mod", normal(9), positive(1), note="fmod", fmod=1),
        c("Pow", positive(3, 4), normal(4)),
        c("Pow", X, ints(2), note="integer-exponent"),
        c("Equal", ints(1, 2, 3), ints(1, 0, 3)),
        c("And", B, np.array([True])),
        c("Or", B, np.array([False])),
        c("Not", B),
        c("IsNaN", np.array([1, np.nan], np.float32)),
        c("Where", B, normal(2, 3), normal(2, 1)),
        c("Clip", X, np.float32(-0.5), np.float32(0.7)),
        c("Clip", X, None, np.float32(0.7), note="max-only"),
        c("Clip", X, opset=10, min=-0.3, max=0.4),
        c("Clip", ints(1, 5, 9), np.int64(2), np.int64(6), note="integers"),
        c("LeakyRelu", X),
        c("LeakyRelu", X, note="alpha", alpha=0.3),
        c("Elu", X, note="alpha", alpha=0.5),
        c("ThresholdedRelu", X, alpha=0.4),
        c("PRelu", X, normal(6, 1, 1)),
        c("HardSigmoid", 3 * X),
        c("HardSigmoid", 3 * X, note="alpha-beta", alpha=0.1, beta=0.3),
        c("Gelu", X, opset=20),
        c("Gelu", X, opset=20, note="tanh", approximate="tanh"),
        c("Swish", X, opset=24, alpha=1.5),
        c("Dropout", X),
        c("Dropout", X, opset=10, ratio=0.3),
        c("Cast", 3 * X, to=int(TensorProto.INT64)),
        c("Cast", ints(0, 1, 2), note="bool", to=int(TensorProto.BOOL)),
        c("CastLike", ints(1, 2), normal(1)),
        c("Sum", X, X, normal(6, 1, 1), note="three"),
    ]
    return found


def reductions() -> list[Case]:
    found = [c(f"Reduce{k}", X, axes=[1, -1]) for k in "L1 L2 LogSumExp Max Mean Min Prod SumSquare".split()]
    found += [c(f"Reduce{k}", X, ints(2, 3), opset=18, keepdims=0) for k in "L1 L2 LogSumExp Max Mean Min".split()]
    found += [
        c("ReduceLogSum", np.abs(X), axes=[1]),
        c("ReduceSum", X, ints(1, -1)),
        c("ReduceSum", X, opset=11, axes=[2], keepdims=0),
        c("ReduceSum", X, note="all"),
        c("ReduceSum", X, note="none", noop_with_empty_axes=1),
        c("ReduceMean", X, note="all", keepdims=0),
        c("ArgMax", X, axis=1),
        c("ArgMin", X, axis=-1, keepdims=0),
        c("Softmax", X),
        c("Softmax", X, note="axis", axis=1),
        c("Softmax", X, opset=11),
        c("Softmax", X, opset=11, note="axis", axis=2),
        c("LogSoftmax", X, axis=1),
        c("LogSoftmax", X, opset=12),
        c("CumSum", X, np.int64(2)),
        c("CumSum", X, np.int64(-1), note="reverse", reverse=1, exclusive=1),
        c("TopK", X, ints(3), outputs=2, axis=1),
    ]
    return found


def shapes() -> list[Case]:
    return [
        c("Reshape", X, ints(0, -1, 3)),
        c("Reshape", np.zeros((0, 3), np.float32), ints(3, 0), note="allowzero", allowzero=1),
        c("Flatten", X),
        c("Flatten", X, note="negative", axis=-1),
        c("Flatten", X, note="zero", axis=0),
        c("Transpose", X),
        c("Transpose", X, note="perm", perm=[0, 2, 3, 1]),
        c("Squeeze", normal(1, 3, 1, 2)),
        c("Squeeze", normal(1, 3, 1, 2), ints(-2), note="axes"),
        c("Squeeze", normal(1, 3, 1, 2), opset=11, axes=[0]),
        c("Unsqueeze", normal(3, 2), ints(0, -1)),
        c("Unsqueeze", normal(3, 2), opset=11, axes=[1, 3]),
        c("Expand", normal(3, 1), ints(2, 1, 4)),
        c("Tile", normal(2, 3), ints(2, 1)),
        c("Shape", X),
        c("Shape", X, note="part", start=1, end=-1),
        c("Size", X),
        c("Constant", note="tensor", value=normal(2, 3)),
        c("Constant", note="double", value=np.array([1 / 3])),
        c("Constant", note="float", value_float=0.5),
        c("Constant", note="ints", value_ints=[1, 2]),
        c("ConstantOfShape", ints(2, 3)),
        c("ConstantOfShape", ints(2), note="value", value=ints(7)),
        c("Range", np.int64(1), np.int64(10), np.int64(3)),
        c("DepthToSpace", normal(1, 8, 2, 3), blocksize=2),
        c("DepthToSpace", normal(1, 8, 2, 3), note="crd", blocksize=2, mode="CRD"),
        c("SpaceToDepth", normal(1, 2, 4, 6), blocksize=2),
    ]


def indexing() -> list[Case]:
    return [
        c("Concat", X, normal(2, 1, 7, 9), normal(2, 2, 7, 9), axis=-3),
        c("Split", X, ints(1, 2, 3), outputs=3, axis=1),
        c("Split", X, outputs=3, note="equal", axis=1),
        c("Split", X, outputs=2, opset=11, axis=3, split=[4, 5]),
        c("Split", X, outputs=2, opset=18, axis=3, num_outputs=2),
        c("Slice", X, ints(1, -5), ints(3, 100), ints(1, 3)),
        c("Slice", X, ints(-1, 8), ints(-100, 0), ints(2, 3), ints(-2, -3), note="backwards"),
        c("Slice", X, ints(0, 1), ints(2, 4), note="first-axes"),
        c("Slice", X, ints(0), ints(9), ints(3), ints(2), note="steps"),
        c("Slice", X, ints(5), ints(2), ints(3), note="empty"),
        c("Slice", X, opset=9, starts=[1], ends=[-1], axes=[2]),
        c("Gather", X, ints(2, -1), axis=1),
        c("Gather", X, np.int64(1), note="scalar", axis=2),
        c("Gather", ints(3, 4), np.int64(-1), note="number"),
        c("Gather", X, np.array([[0, 1], [1, 0]]), note="matrix"),
        c("GatherElements", normal(3, 4), np.array([[0, -1], [2, 1]]), axis=1),
        c("GatherND", normal(3, 4, 2), np.array([[0, 1], [2, 3]])),
        c("ScatterND", normal(4, 2), np.array([[1], [3]]), normal(2, 2)),
        c("OneHot", ints(0, 2, 1), np.int64(3), np.array([0.0, 5.0], np.float32)),
        c("Trilu", normal(4, 5), np.int64(1)),
        c("Trilu", normal(4, 5), note="lower", upper=0),
        c("Pad", X, ints(0, 1, 2, 0, 0, 0, 1, 3)),
        c("Pad", X, ints(0, 0, -2, 1, 0, 0, 1, -3), np.float32(2), note="cut"),
        c("Pad", X, ints(1, 2, 0, 1), None, ints(2, -1), opset=18, note="axes"),
        c("Pad", X, ints(0, 0, 2, 3, 0, 0, 1, 0), note="reflect", mode="reflect"),
        c("Pad", X, ints(0, 0, 2, 3, 0, 0, 1, 0), note="edge", mode="edge"),
        c("Pad", X, ints(0, 0, 2, 3, 0, 0, 1, 0), opset=19, note="wrap", mode="wrap"),
        c("Pad", X, opset=10, pads=[0, 0, 1, 1, 0, 0, 0, 2], value=1.5),
    ]


def resizes() -> list[Case]:
    def scales(*values: float) -> Array:
        return np.array(values, np.float32)

    found = [
        c(
            "Resize",
            X,
            None,
            scales(1, 1, 2, 3),
            note=f"{how}-{rounding}",
            coordinate_transformation_mode=how,
            nearest_mode=rounding,
        )
        for how in ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")
        for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    ]
    for mode in ("linear", "cubic"):
        for how in ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"):
            extra: dict[str, Attribute] = {"mode": mode, "coordinate_transformation_mode": how}
            found.append(c("Resize", X, None, scales(1, 1, 1.7, 0.6), note=f"{mode}-{how}", **extra))
            found.append(c("Resize", X, None, None, ints(2, 6, 5, 20), note=f"{mode}-{how}-sizes", **extra))
    return [
        *found,
        c("Resize", X, None, scales(1, 1, 0.5, 0.5), note="smaller", nearest_mode="floor"),
        c("Resize", X, None, scales(2, 3), opset=18, note="axes", axes=[2, 3]),
        c("Resize", X, None, scales(1, 1, 2, 2), opset=19, note="symmetric", mode="linear",
          coordinate_transformation_mode="half_pixel_symmetric"),
        c("Resize", X, None, scales(1, 1, 2.5, 1), note="outside", mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5),
        c("Resize", X, scales(1, 1, 2, 2), opset=10),
        c("Resize", X, scales(1, 1, 2, 2), opset=10, note="linear", mode="linear"),
        c("Upsample", X, scales(1, 1, 2, 3), opset=9),
        c("Upsample", X, opset=7, note="linear", mode="linear", scales=[1.0, 1.0, 2.0, 2.0]),
    ]  # fmt: skip


CASES = [
    *convolutions(),
    *pools(),
    *normalizations(),
    *products(),
    *elementwise(),
    *reductions(),
    *shapes(),
    *indexing(),
    *resizes(),
]
