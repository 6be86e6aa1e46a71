"""A placed ONNX model as OpenVINO reads it: names that stay the same, and a processor for every operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx

from hetrl.export.whole import WholeModel

NARROW = ("i8", "u8", "i4", "u4")


def with_own_constants(whole: WholeModel) -> onnx.ModelProto:
    """The model with every constant read once: HETERO would connect pieces by a shared one, or cut it off."""
    model = onnx.ModelProto()
    model.CopyFrom(whole.model)
    tensors = {tensor.name: tensor for tensor in whole.model.graph.initializer}
    taken: set[str] = set()
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name not in tensors:
                continue
            if name in taken:
                own = f"{name}#{node.name}.{position}"
                model.graph.initializer.add().CopyFrom(tensors[name])
                model.graph.initializer[-1].name = own
                node.input[position] = own
            taken.add(name)
    return model


def folded(read: Any) -> Any:
    """OpenVINO's model with what follows from its shapes worked out.

    Its reader works sizes out by operators, and HETERO hands an empty tensor to a piece that reads a size of another.
    Narrow weights are no constants meanwhile: they would be folded to float32.
    """
    from openvino import opset8
    from openvino.passes import ConstantFolding, Manager

    constants = [o for o in read.get_ordered_ops() if o.get_type_name() == "Constant"]
    narrow = [o for o in constants if o.get_element_type().get_type_name() in NARROW]
    stand_ins = [opset8.parameter(o.get_output_shape(0), o.get_element_type()) for o in narrow]
    read.add_parameters(stand_ins)
    for constant, stand_in in zip(narrow, stand_ins, strict=True):
        constant.output(0).replace(stand_in.output(0))
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(read)
    for constant, stand_in in zip(narrow, stand_ins, strict=True):
        stand_in.output(0).replace(constant.output(0))
        read.remove_parameter(stand_in)
    return read


def placed_operators(read: Any, model: onnx.ModelProto, whole: WholeModel, inputs: Sequence[str]) -> dict[str, str]:
    """Name OpenVINO's operators anew; the processor of each, by name.

    What makes a node's result gets the node's name. What the reader made up gets a number: its own names count on from
    model to model. What the plan does not place goes with what reads it, or else with what it reads.

    :param read: OpenVINO's model of `model`, whose operators are renamed.
    """
    maker = {name: node.name for node in model.graph.node for name in node.output if name}
    constants = {tensor.name for tensor in model.graph.initializer}
    operators = list(read.get_ordered_ops())
    names: list[str] = []
    planned: list[str] = []
    for number, operator in enumerate(operators):
        made = [] if operator.get_type_name() == "Result" else sorted(_made(operator, maker))
        name = made[0] if made else operator.get_friendly_name()
        if name in names or not (made or name in constants or name in inputs):
            name = f"{operator.get_type_name().lower()}.{number}"
        names.append(name)
        planned.append(whole.places[made[0]].processor if made else "")
    for operator, name in zip(operators, names, strict=True):
        operator.set_friendly_name(name)
    found = dict(zip(names, planned, strict=True))
    for operator in reversed(operators):
        readers = sorted(_readers(operator))
        own = found[operator.get_friendly_name()]
        found[operator.get_friendly_name()] = own or next((found[r] for r in readers if found[r]), "")
    for operator in operators:
        own = found[operator.get_friendly_name()]
        found[operator.get_friendly_name()] = own or next((found[s] for s in _sources(operator) if found[s]), "")
    anywhere = next(processor for processor in found.values() if processor)  # for inputs that nobody reads
    return {name: processor or anywhere for name, processor in found.items()}


def _made(operator: Any, maker: Mapping[str, str]) -> set[str]:
    """Nodes of the ONNX model whose results an operator makes."""
    tensors = {name for output in operator.outputs() for name in output.get_names()}
    return {maker[name] for name in tensors if name in maker}


def _readers(operator: Any) -> Iterator[str]:
    for output in operator.outputs():
        for target in output.get_target_inputs():
            yield target.get_node().get_friendly_name()


def _sources(operator: Any) -> Iterator[str]:
    for value in operator.inputs():
        yield value.get_source_output().get_node().get_friendly_name()
