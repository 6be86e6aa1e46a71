"""Where a compiled OpenVINO model has its operators: what its IR names, and what HETERO reports of its pieces."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from hetrl.export.places import Places

_PIECE = re.compile(r"subgraph(\d+): (.*)", re.DOTALL)  # of a node's name in HETERO's profile
_NO_WORK = ("Parameter", "Constant", "Result")


def misplaced(model: Any, processors: Mapping[str, str], places: Places) -> str | None:
    """What is wrong with where the operators of an IR are, if anything is.

    An ONNX operator without an operator of its own (Identity) gives its result's name to another one.

    :param model: OpenVINO's.
    :param processors: by friendly name of OpenVINO's operators.
    """
    found: dict[str, str] = {}
    for operator in model.get_ordered_ops():
        processor = processors[operator.get_friendly_name()]
        for output in operator.outputs() if operator.get_type_name() != "Result" else ():
            names = output.get_names()
            planned = {name: places.processor(name) for name in names}
            shares = processor in planned.values()
            found |= {name: (planned[name] or processor) if shares else processor for name in names}
    return places.misplaced(found)


def fewest_pieces(model: Any, devices: Mapping[str, str]) -> tuple[int, bool]:
    """Into how many submodels HETERO has to cut a model: operators of one device that touch are one.

    :param devices: by friendly name.
    :returns: the number, and whether it is exact: HETERO cuts pieces further that would wait for each other.
    """
    operators = list(model.get_ordered_ops())
    piece = {operator.get_friendly_name(): number for number, operator in enumerate(operators)}
    edges = [
        (value.get_source_output().get_node().get_friendly_name(), operator.get_friendly_name())
        for operator in operators
        for value in operator.inputs()
    ]
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
