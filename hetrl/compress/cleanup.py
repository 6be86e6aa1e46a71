"""What nobody reads goes: nodes, weights and declarations that a change has left behind."""

from __future__ import annotations

import onnx

from hetrl.graph.wiring import reads


def drop_unread(model: onnx.ModelProto) -> None:
    """Remove, in place, nodes, initializers and declared shapes that no output needs; the graph's inputs stay.

    Initializers that are listed as inputs as well, as old files do, leave that list with their weights.
    """
    graph = model.graph
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needed: set[str] = set()
    live: set[int] = set()
    waiting = [output.name for output in graph.output]
    while waiting:
        name = waiting.pop()
        needed.add(name)
        index = maker.get(name)
        if index is not None and index not in live:
            live.add(index)
            waiting += reads(graph.node[index])
    gone = (set(maker) | {tensor.name for tensor in graph.initializer}) - needed
    for index in reversed(range(len(graph.node))):
        if index not in live:
            del graph.node[index]
    for field in (graph.initializer, graph.input, graph.value_info):
        for index in reversed(range(len(field))):
            if field[index].name in gone:
                del field[index]


def fresh(name: str, taken: set[str]) -> str:
    """`name`, or the first of `name_2`, `name_3`, ... that is not taken; it is taken afterwards."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def tensor_names(model: onnx.ModelProto) -> set[str]:
    """Every name of a tensor or node of the model, those inside of subgraphs included."""
    return _names(model.graph)


def _names(graph: onnx.GraphProto) -> set[str]:
    found = {info.name for field in (graph.input, graph.output, graph.value_info) for info in field}
    found |= {tensor.name for tensor in graph.initializer}
    found |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        found |= {node.name, *node.input, *node.output}
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                found |= _names(inner)
    return found
