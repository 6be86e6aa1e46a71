"""Factoring a model: its weights as chains of smaller ones, where that saves weights and work.

Works on complete models and on such whose weights are not there: all but the numbers follows from shapes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec
import onnx
from onnx import inliner

from hetrl.compress.low_rank.layers import Layer, LeftLayer, Use, find_layers
from hetrl.compress.low_rank.policy import LowRank
from hetrl.compress.low_rank.schemes import Chain, Dense, Factor, Parts, Ranks, chain
from hetrl.compress.low_rank.writer import Writer
from hetrl.errors import ModelError
from hetrl.graph.reader import graph_from_model


class FactoredLayer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one layer.

    :param name: of its output, which the last link makes now.
    :param scheme: `narrow`, `tucker`, `spatial`, or `svd` of a matrix.
    :param ranks: one, or (in, out) of Tucker's; `full_ranks` would lose nothing.
    :param weights, macs: before and after; multiply-accumulates of all operators that read the weights.
    :param energy: share of the sum of squared weights that is kept; None where the weights are absent.
    :param weight: the weights that are gone; `factors` are those that came.
    """

    name: str
    scheme: str
    ranks: tuple[int, ...]
    full_ranks: tuple[int, ...]
    weights: tuple[int, int]
    macs: tuple[int, int]
    energy: float | None
    weight: str
    factors: tuple[str, ...]


class LowRankReport(msgspec.Struct, frozen=True):
    factored: tuple[FactoredLayer, ...]
    left: tuple[LeftLayer, ...]


@dataclass(frozen=True)
class Factored:
    """The smaller model and what was done."""

    model: onnx.ModelProto
    report: LowRankReport


def factor(
    model: onnx.ModelProto,
    policy: LowRank,
    *,
    input_shapes: dict[str, tuple[int, ...]] | None = None,
    only: Collection[str] | None = None,
) -> Factored:
    """The model with its layers factored. Every operator's first output keeps its name.

    :param model: complete, or without weights (unless the policy goes by energy); it is not changed.
    :param input_shapes: of inputs whose sizes the model leaves open.
    :param only: names of the layers that are factored, where not all are.
    :raises ModelError: the policy goes by energy and weights are absent; or no valid model.
    """
    result = inliner.inline_local_functions(model) if model.functions else _copy(model)
    graph = graph_from_model(result, name=model.graph.name or "the model", input_shapes=input_shapes)
    layers, left = find_layers(result, graph, policy)
    if only is not None:
        left += [LeftLayer(layer.name, "it is not asked for") for layer in layers if layer.name not in only]
        layers = [layer for layer in layers if layer.name in only]
    writer = Writer(result)
    done = [_factored(layer, policy, writer) for layer in layers]
    writer.finish()
    place = {node.id: position for position, node in enumerate(graph.nodes)}
    left = sorted([*left, *(one for one in done if isinstance(one, LeftLayer))], key=lambda one: place[one.name])
    return Factored(result, LowRankReport(tuple(one for one in done if isinstance(one, FactoredLayer)), tuple(left)))


def _factored(layer: Layer, policy: LowRank, writer: Writer) -> FactoredLayer | LeftLayer:
    """Factor a layer, or say why that does not pay."""
    scheme, links = _chain(layer, policy)
    parts = _parts(layer, links) if policy.energy is not None else None
    ranks = _ranks(links, parts, policy)
    factors = links.factors(ranks)
    weights = (math.prod(links.shape), links.weights(ranks))
    macs = (
        sum(chain_macs(links, None, use) for use in layer.uses),
        sum(chain_macs(links, factors, use) for use in layer.uses),
    )
    if not policy.always:
        for what, (before, after) in (("weights", weights), ("multiply-accumulates", macs)):
            if after >= before:
                rank = " x ".join(map(str, ranks))
                return LeftLayer(layer.name, f"at rank {rank} it would have {after:,} {what} instead of {before:,}")
    if parts is None and layer.constant.present:
        parts = _parts(layer, links)
    return FactoredLayer(
        name=layer.name,
        scheme=scheme,
        ranks=ranks,
        full_ranks=links.full,
        weights=weights,
        macs=macs,
        energy=None if parts is None else parts.kept(ranks),
        weight=layer.weight,
        factors=writer.replace(layer, factors, None if parts is None else parts.arrays(ranks)),
    )


def _chain(layer: Layer, policy: LowRank) -> tuple[str, Chain]:
    shape = layer.constant.shape
    if layer.dense:
        return "svd", Dense(shape[::-1] if layer.turned else shape)
    scheme, links = chain(policy.scheme, shape)
    return ("svd" if math.prod(shape[2:]) == 1 else scheme.value), links


def _parts(layer: Layer, links: Chain) -> Parts:
    if not layer.constant.present:
        raise ModelError(
            f"the energy of {layer.weight!r} is not known without its numbers", "draw them with --seeded-weights SEED"
        )
    array = layer.constant.array()
    return links.parts(array.T if layer.dense and layer.turned else array)


def _ranks(links: Chain, parts: Parts | None, policy: LowRank) -> Ranks:
    if parts is not None and policy.energy is not None:
        return parts.ranks_for(policy.energy)
    return links.by_rank(policy.rank) if policy.rank is not None else links.by_share(policy.keep or 1.0)


def chain_macs(links: Chain, factors: Sequence[Factor] | None, use: Use) -> int:
    """Multiply-accumulates of the chain; of the original where `factors` is None."""
    if isinstance(links, Dense):
        rows = math.prod(use.out) // max(links.shape[1], 1)
        return rows * (math.prod(links.shape) if factors is None else sum(link.weights for link in factors))
    source, out = use.source[2:], use.out[2:]
    if factors is None:
        return use.out[0] * math.prod(out) * math.prod(links.shape)
    total, sizes = 0, list(source)
    for link in factors:
        for axis in link.axes:
            sizes[axis] = out[axis]
        total += use.out[0] * math.prod(sizes) * link.weights
    return total


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
