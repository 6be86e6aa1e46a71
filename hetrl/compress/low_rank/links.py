"""The operators of a chain in place of one operator."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from hetrl.compress.low_rank.layers import OPTIONAL_BIAS
from hetrl.compress.low_rank.schemes import Factor
from hetrl.graph.single import plain_domain

_PER_AXIS = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 0}  # and the value that does nothing


def link_nodes(
    node: onnx.NodeProto,
    factors: Sequence[Factor],
    names: Sequence[str],
    middles: Sequence[str],
    model: onnx.ModelProto,
) -> list[onnx.NodeProto]:
    """One operator per link; the last has the original's name, output and bias.

    :param names: of the links' weights.
    :param middles: of the tensors between them.
    """
    opset = next((o.version for o in model.opset_import if not plain_domain(o.domain)), 0)
    sources, outputs = [node.input[0], *middles], [*middles, node.output[0]]
    links = []
    for position, (factor, weight, source, output) in enumerate(zip(factors, names, sources, outputs, strict=True)):
        last = position == len(factors) - 1
        link = onnx.NodeProto(op_type=node.op_type, name=node.name if last else output, input=[source, weight])
        link.output.append(output)
        link.input.extend(node.input[2:] if last else ())
        if node.op_type == "Conv":
            link.attribute.extend(_window(node, factor))
        elif node.op_type == "Gemm":
            if not last and opset < OPTIONAL_BIAS:
                link.op_type = "MatMul"
            else:
                link.attribute.extend(_product(node, first=position == 0, last=last))
        links.append(link)
    return links


def _window(node: onnx.NodeProto, factor: Factor) -> list[onnx.AttributeProto]:
    """The convolution's attributes along the link's axes, and none along the others."""
    given = {attribute.name: attribute for attribute in node.attribute}
    rank = len(factor.shape) - 2
    found = []
    for name, nothing in _PER_AXIS.items():
        if name == "kernel_shape":
            found.append(helper.make_attribute(name, factor.shape[2:]))
        elif name in given:
            values = given[name].ints
            kept = [value if axis % rank in factor.axes else nothing for axis, value in enumerate(values)]
            found.append(helper.make_attribute(name, kept))
    if factor.axes and "auto_pad" in given:
        found.append(given["auto_pad"])
    return found


def _product(node: onnx.NodeProto, *, first: bool, last: bool) -> list[onnx.AttributeProto]:
    """transA belongs to the data, the scales to the sum, transB to both matrices, which are stored alike."""
    wanted = {"transB"} | ({"transA"} if first else set()) | ({"alpha", "beta"} if last else set())
    return [attribute for attribute in node.attribute if attribute.name in wanted]
