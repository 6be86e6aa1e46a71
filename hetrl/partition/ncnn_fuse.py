"""What ncnn's own optimizer does before inference: layers that one layer can do at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hetrl.partition.ncnn_layer import Layer, Value, Weight

# Where a layer that has weights says whether it has a bias; its weights start with the output channels.
_BIAS_TERM = {
    "Convolution": 5, "ConvolutionDepthWise": 5, "Deconvolution": 5, "DeconvolutionDepthWise": 5, "InnerProduct": 1
}  # fmt: skip
_ACTIVATION_TYPE, _ACTIVATION_PARAMS = 9, 10
_RESHAPES = ("Reshape", "Flatten")


def fuse(layers: Sequence[Layer], outputs: Sequence[str]) -> list[Layer]:
    """Normalizations into the weights before them, activations into the layers before them, reshapes into one.

    What leaves the net (`outputs`) or has several readers stays as it is.
    """
    readers = Counter([blob for layer in layers for blob in layer.reads] + list(outputs))
    done: list[Layer] = []
    maker: dict[str, int] = {}
    for layer in layers:
        before = maker.get(layer.reads[0]) if len(layer.reads) == 1 else None
        merged = None
        if before is not None and readers[layer.reads[0]] == 1 and layer.reads[0] not in outputs:
            merged = _merged(done[before], layer)
        if merged is not None and before is not None:
            done[before] = merged
            maker[layer.writes[0]] = before
        else:
            done.append(layer)
            maker.update(dict.fromkeys(layer.writes, len(done) - 1))
    return done


def _merged(first: Layer, second: Layer) -> Layer | None:
    """One layer that does both, None if there is none."""
    both = first.nodes + tuple(node for node in second.nodes if node not in first.nodes)
    if first.type in _RESHAPES and second.type in _RESHAPES:
        return replace(second, reads=first.reads, nodes=both)
    if first.type not in _BIAS_TERM or first.params.get(_ACTIVATION_TYPE, 0):
        return None
    joined = replace(first, name=second.name, writes=second.writes, nodes=both)
    if second.type == "BatchNorm":
        return _with_norm(joined, second)
    activation = _activation(second)
    if activation is None:
        return None
    number, values = activation
    params: dict[int, Value] = {**first.params, _ACTIVATION_TYPE: number}
    if values:
        params[_ACTIVATION_PARAMS] = values
    return replace(joined, params=params)


def _activation(layer: Layer) -> tuple[int, tuple[float, ...]] | None:
    """ncnn's number of a fused activation and its parameters (ncnn/src/layer/fused_activation.h)."""
    numbers = [layer.params.get(i) for i in (0, 1)]
    first, second = (float(v) if isinstance(v, int | float) else None for v in numbers)
    if layer.type == "ReLU":
        return (2, (first,)) if first else (1, ())
    if layer.type == "Clip" and first is not None and second is not None:
        return 3, (first, second)
    if layer.type == "Sigmoid":
        return 4, ()
    if layer.type == "HardSwish" and first is not None and second is not None:
        return 6, (first, second)
    return None


def _with_norm(layer: Layer, norm: Layer) -> Layer | None:
    """`(w x + b - mean) / sqrt(var + eps) * slope + shift`, as one linear layer."""
    slope, mean, variance, shift = (weight.data.astype(np.float64) for weight in norm.weights)
    epsilon = norm.params[1]
    if not isinstance(epsilon, float) or len(slope) != layer.params[0]:
        return None
    factor = slope / np.sqrt(variance + epsilon)
    weight, *bias = (weight.data for weight in layer.weights)
    scaled = weight * factor.astype(np.float32).reshape(-1, *[1] * (weight.ndim - 1))
    shifted = ((bias[0].astype(np.float64) if bias else 0.0) - mean) * factor + shift
    weights = (Weight(scaled, tagged=True), Weight(shifted.astype(np.float32)))
    return replace(layer, params={**layer.params, _BIAS_TERM[layer.type]: 1}, weights=weights)
