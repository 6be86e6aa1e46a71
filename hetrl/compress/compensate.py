"""What pruned channels carried, taken over by those that stay: no labels, no training, one linear system per layer.

Where a product reads channels that go, each of them is written as the combination of those that stay which is nearest
to it on calibration inputs, and the product's weights on it are added to theirs. This is the reconstruction of He et
al., "Channel Pruning for Accelerating Very Deep Neural Networks" (ICCV 2017, section 3.1), with the channels chosen
before, and with values of the original network throughout. Products that read their channels one by one (depthwise
convolutions), and those whose weights several operators read, stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from hetrl.compress.activations import fetched
from hetrl.compress.constants import Array
from hetrl.compress.weights import arrays, with_arrays
from hetrl.graph import OperatorGraph
from hetrl.graph.channels import Role
from hetrl.graph.model import OpKind

Floats = NDArray[np.float64]
MOST_PLACES = 4608  # of an axis: its products are a matrix of that size
RIDGE = 1e-3  # added to the diagonal, over its mean: what hardly varies must not get large weights


class Product(NamedTuple):
    """An operator that multiplies channels with weights.

    :param source: the activation that it reads, and `axis` the one with its channels.
    :param weight: the initializer, and `along` the axis that meets the channels.
    :param atoms: the channel at each place.
    """

    source: str
    axis: int
    weight: str
    along: int
    atoms: NDArray[np.int64]


class Moments(msgspec.Struct, frozen=True):
    """Sums of products of channels with each other on calibration inputs, (C, C) for each activation by name."""

    of: dict[str, Floats]


def products(model: onnx.ModelProto, graph: OperatorGraph) -> tuple[Product, ...]:
    """Operators whose weights can take over for lost channels.

    :param model: complete, functions inlined.
    """
    floats = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    read = Counter(name for node in model.graph.node for name in node.input)
    found = []
    for step in graph.channels.traced:
        operator = step.operator
        if operator.kind not in (OpKind.CONV, OpKind.GEMM, OpKind.MATMUL):
            continue
        for (position, along), role in step.roles.items():
            weight, axis = operator.operands[position], step.operands[position][along]
            if role is not Role.TAKES or weight is None or axis is None:
                continue
            if weight.name not in floats or read[weight.name] != 1 or len(axis.atoms) > MOST_PLACES:
                continue
            for other, axes in step.operands.items():
                source = operator.operands[other]
                if source is None or source.constant:
                    continue
                for number, its in enumerate(axes):
                    if its is not None and np.array_equal(its.atoms, axis.atoms):
                        found.append(Product(source.name, number, weight.name, along, axis.atoms))
    return tuple(found)


def moments(model: onnx.ModelProto, graph: OperatorGraph, inputs: Sequence[Mapping[str, Array]]) -> Moments:
    """What `compensated` needs to know of a model's activations.

    :param inputs: batches by input name, each as the model takes it.
    :raises MissingExtra: there is no ONNX Runtime.
    """
    axes = {product.source: product.axis for product in products(model, graph) if (product.atoms >= 0).any()}
    total: dict[str, Floats] = {}
    for name, array in fetched(model, list(axes), inputs):
        values = np.moveaxis(array, axes[name], -1)
        rows = np.asarray(values.reshape(-1, values.shape[-1]), np.float32)
        total[name] = total.get(name, 0.0) + (rows.T @ rows).astype(np.float64)
    return Moments(total)


def compensated(
    model: onnx.ModelProto, graph: OperatorGraph, stays: NDArray[np.bool_], known: Moments
) -> onnx.ModelProto:
    """The whole model with weights that expect some of its channels to be missing; not changed itself.

    :param stays: for each channel of `graph.channels`.
    """
    changed: dict[str, Array] = {}
    weights = arrays(model)
    for product in products(model, graph):
        keep = np.where(product.atoms < 0, True, stays[product.atoms])
        moment = known.of.get(product.source)
        if keep.all() or not keep.any() or moment is None:
            continue
        inner = moment[np.ix_(keep, keep)]
        ridge = RIDGE * float(np.diag(inner).mean())
        if not (np.isfinite(moment).all() and ridge > 0):
            continue
        shares = np.linalg.solve(inner + ridge * np.eye(len(inner)), moment[np.ix_(keep, ~keep)])  # (stay, go)
        weight = np.moveaxis(weights[product.weight].astype(np.float64), product.along, -1)
        weight[..., keep] += weight[..., ~keep] @ shares.T
        changed[product.weight] = np.moveaxis(weight, -1, product.along).astype(np.float32)
    return with_arrays(model, changed)
