"""Whether a graph's wires make sense, and its nodes in topological order."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import onnx

from hetrl.errors import ModelError


def label(node: onnx.NodeProto) -> str:
    """How errors name a node: `'conv1' (Conv)`."""
    name = node.name or next((o for o in node.output if o), "without a name")
    return f"{name!r} ({node.op_type})"


def constant_names(graph: onnx.GraphProto) -> set[str]:
    """Names of dense and sparse initializers."""
    return {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}


def captured(node: onnx.NodeProto) -> list[str]:
    """Tensors of the outer graph that the subgraphs of a node (If, Loop, Scan) read, in order, each once."""
    found: dict[str, None] = {}
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            local = constant_names(graph) | {i.name for i in graph.input}
            local |= {output for inner in graph.node for output in inner.output}
            reads = [name for inner in graph.node for name in [*inner.input, *captured(inner)]]
            reads += [output.name for output in graph.output]
            found |= dict.fromkeys(name for name in reads if name and name not in local)
    return list(found)


def reads(node: onnx.NodeProto) -> list[str]:
    """All tensors that a node needs, optional ones that are left out excluded."""
    return [name for name in node.input if name] + captured(node)


def ordered_nodes(graph: onnx.GraphProto, where: str) -> list[onnx.NodeProto]:
    """The nodes in topological order, as near to the order in the file as that allows.

    :param where: the file, for messages.
    :raises ModelError: no nodes, inputs or outputs; a tensor that two make or none makes; a cycle.
    """
    if not graph.node:
        raise ModelError(f"{where} has no operators")
    constants = constant_names(graph)
    inputs = [i.name for i in graph.input if i.name not in constants]
    if not inputs:
        raise ModelError(f"{where} has no input")
    if not graph.output:
        raise ModelError(f"{where} has no output")
    _forbid_duplicates([i.name for i in graph.input], where)
    _forbid_duplicates([t.name for t in graph.initializer], where)
    made_by: dict[str, int] = {}
    given = constants.union(inputs)
    for index, node in enumerate(graph.node):
        if not any(node.output):
            raise ModelError(f"{where}: node {label(node)} has no output")
        for output in node.output:
            if output and (output in made_by or output in given):
                raise ModelError(f"{where}: two nodes or inputs make the tensor {output!r}, one of them {label(node)}")
            if output:
                made_by[output] = index
    for node in graph.node:
        for name in reads(node):
            if name not in made_by and name not in given:
                raise ModelError(f"{where}: node {label(node)} reads the tensor {name!r}, which nothing makes")
    for output_info in graph.output:
        if output_info.name not in made_by and output_info.name not in given:
            raise ModelError(f"{where}: nothing makes the model's output {output_info.name!r}")
    needs = [sorted({made_by[name] for name in reads(node) if name in made_by}) for node in graph.node]
    return [graph.node[index] for index in _topological(needs, graph.node, where)]


def _forbid_duplicates(names: Sequence[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ModelError(f"{where}: the tensor {name!r} is declared twice")
        seen.add(name)


def _topological(needs: list[list[int]], nodes: Sequence[onnx.NodeProto], where: str) -> list[int]:
    """Kahn's algorithm; of the nodes that are ready, the first in the file comes first."""
    missing = [len(need) for need in needs]
    readers: list[list[int]] = [[] for _ in needs]
    for index, need in enumerate(needs):
        for source in need:
            readers[source].append(index)
    ready = [index for index, count in enumerate(missing) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers[index]:
            missing[reader] -= 1
            if missing[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(needs):
        done = set(order)
        node = next(index for index in range(len(needs)) if index not in done)
        path: list[int] = []
        while node not in path:  # walking up from a node that is never ready must meet the cycle
            path.append(node)
            node = next(source for source in needs[node] if source not in done)
        loop = [label(nodes[index]) for index in reversed(path[path.index(node) :])]
        raise ModelError(f"{where}: the nodes {' -> '.join(loop[:4])} form a cycle")
    return order
