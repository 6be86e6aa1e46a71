"""Where a compiled OpenVINO model has its operators: what its IR names, and what HETERO reports of its pieces."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from hetrl.export.places import Places

_PIECE = re.compile(r"subgraph(\d+): (.*)", re.DOTALL)  # of a node's name in HETERO's profile
_NO_WORK = ("Parameter", "Constant", "Result")


def unnamed(model: Any, nodes: Iterable[str]) -> tuple[str, ...]:
    """Those of some ONNX operators whose results have no name in an IR: OpenVINO has made them part of others."""
    named = {
        name for operator in model.get_ordered_ops() for output in operator.outputs() for name in output.get_names()
    }
    return tuple(node for node in nodes if node not in named)


def elsewhere(model: Any, processors: Mapping[str, str], places: Places, vanished: Collection[str]) -> str | None:
    """What is wrong with where the operators of an IR are, if anything is.

    An ONNX operator without an operator of its own (Identity) gives its result's name to another one.

    :param model: OpenVINO's.
    :param processors: by friendly name of OpenVINO's operators.
    :param vanished: see `unnamed`.
    """
    found: dict[str, str] = {}
    planned: set[str] = set()
    for operator in model.get_ordered_ops():
        processor = processors[operator.get_friendly_name()]
        for output in operator.outputs() if operator.get_type_name() != "Result" else ():
            wanted = {name: places.processor(name) for name in output.get_names()}
            shares = processor in wanted.values()
            found |= {name: (wanted[name] or processor) if shares else processor for name in wanted}
            planned |= {operator.get_friendly_name()} if any(wanted.values()) else set()
    nameless = {places.processor(name) for name in vanished}  # the plan's own may be among the others there
    known = {name: processor for name, processor in processors.items() if processor not in nameless}
    return places.misplaced(found, vanished) or _astray(model, known, planned)


def _astray(model: Any, processors: Mapping[str, str], planned: Collection[str]) -> str | None:
    """An operator that OpenVINO or the exporter has added, and that is with none of the plan's that it touches.

    :param processors: of the operators in question.
    """
    beside: dict[str, set[str]] = {operator.get_friendly_name(): set() for operator in model.get_ordered_ops()}
    for source, reader in _edges(model):
        beside[source].add(reader)
        beside[reader].add(source)
    held, waiting = set(planned), list(planned)
    while waiting:
        name = waiting.pop()
        new = {other for other in beside[name] - held if processors.get(other) == processors.get(name)}
        held |= new
        waiting += new
    lost = next((name for name in processors if beside.get(name) and name not in held), None)
    return None if lost is None else f"{lost!r} is with none of the plan's operators that it touches"


def _edges(model: Any) -> list[tuple[str, str]]:
    """From whom to whom values go, by friendly names."""
    return [
        (value.get_source_output().get_node().get_friendly_name(), operator.get_friendly_name())
        for operator in model.get_ordered_ops()
        for value in operator.inputs()
    ]


def fewest_pieces(model: Any, devices: Mapping[str, str]) -> tuple[int, bool]:
    """Into how many submodels HETERO has to cut a model: operators of one device that touch are one.

    :param devices: by friendly name.
    :returns: the number, and whether it is exact: HETERO cuts pieces further that would wait for each other.
    """
    operators = list(model.get_ordered_ops())
    piece = {operator.get_friendly_name(): number for number, operator in enumerate(operators)}
    edges = _edges(model)
    root = list(range(len(operators)))

    def find(number: int) -> int:
        while root[number] != number:
            root[number] = root[root[number]]
            number = root[number]
        return number

    for source, reader in edges:
        if devices[source] == devices[reader]:
            root[find(piece[source])] = find(piece[reader])
    working = {find(number) for number, operator in enumerate(operators) if operator.get_type_name() not in _NO_WORK}
    waits: dict[int, set[int]] = {number: set() for number in map(find, root)}
    for source, reader in edges:
        one, other = find(piece[source]), find(piece[reader])
        if one != other:
            waits[other].add(one)
    return len(working), _ends(waits)


def _ends(waits: Mapping[int, set[int]]) -> bool:
    """Whether nothing waits for itself."""
    from graphlib import CycleError, TopologicalSorter

    try:
        TopologicalSorter(waits).prepare()
    except CycleError:
        return False
    return True


def mixed(profiled: Iterable[str], devices: Mapping[str, str]) -> str | None:
    """A piece that HETERO made of operators of several devices, if there is one: it ran them elsewhere.

    :param profiled: names of nodes in HETERO's profile, in which each piece is numbered.
    :param devices: by friendly name.
    """
    of_piece: dict[str, dict[str, str]] = {}
    for name in profiled:
        parts = _PIECE.fullmatch(name)
        if parts is not None and parts[2] in devices:
            of_piece.setdefault(parts[1], {}).setdefault(devices[parts[2]], parts[2])
    for number, found in of_piece.items():
        if len(found) > 1:
            return f"HETERO runs {' and '.join(map(repr, found.values()))} in one piece, {number}"
    return None
