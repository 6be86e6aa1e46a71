"""A float32 graph that computes in float16, with Casts where an operator has to stay float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper, shape_inference

from hetrl.compress.cleanup import drop_unread, fresh, tensor_names
from hetrl.compress.narrow import Half, narrowed
from hetrl.graph.single import plain_domain
from hetrl.graph.wiring import captured, ordered_nodes

_HALF = "tensor(float16)"
_LARGE = 1024  # bytes: larger weights are not looked at for their types
# The type of their results is an attribute's business.
_TYPED = frozenset(
    "ConstantOfShape EyeLike RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial "
    "HannWindow HammingWindow BlackmanWindow DequantizeLinear".split()
)


class Casting:
    """Rewrites one model; see `of`."""

    def __init__(self, model: onnx.ModelProto, floats: set[str]) -> None:
        self.tensors = 0
        self.limited = 0
        self.kept: list[tuple[str, str]] = []
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._floats = floats
        self._taken = tensor_names(model)
        self._opset = next(o.version for o in model.opset_import if not plain_domain(o.domain))
        self._weights = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
        self._outputs = {output.name for output in model.graph.output}
        self._narrow: dict[str, str] = {}  # the float16 name of a tensor
        self._wide: dict[str, str] = {}  # its float32 name
        self._nodes: list[onnx.NodeProto] = []
        self._made: list[TensorProto] = []

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Casting | str:
        """What does it, or why the model cannot compute in float16."""
        if any(captured(node) for node in model.graph.node):
            return "it has subgraphs that read tensors from outside"
        types = _types(model)
        unknown = {name for node in model.graph.node for name in node.output if name} - types.keys()
        if unknown:
            return f"the type of {sorted(unknown)[0]!r} is not known"
        return cls(model, {name for name, code in types.items() if code == TensorProto.FLOAT})

    def result(self) -> onnx.ModelProto:
        """The graph in float16; tensors keep their names, so far as they are no inputs or outputs of the model."""
        graph = self._model.graph
        for info in graph.input:
            if info.name in self._floats and info.name not in self._weights:
                self._wide[info.name] = info.name
        for name in self._outputs & self._weights.keys():
            self._wide[name] = name
            self._made.append(self._weights[name])
        for node in ordered_nodes(graph, graph.name):
            self._rewrite(node)
        for output in graph.output:
            if output.name in self._narrow and output.name not in self._wide:
                self._cast(self._narrow[output.name], output.name, TensorProto.FLOAT)
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self._nodes]
        rest = [TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if t.name not in self._weights]
        for field, values in ((graph.node, copies), (graph.initializer, [*rest, *self._made])):
            del field[:]
            field.extend(values)
        self._declare()
        drop_unread(self._model)
        return self._model

    def _rewrite(self, node: onnx.NodeProto) -> None:
        takes, makes = self._halves(node)
        if node.op_type == "Constant" and makes and self._constant(node):
            self._nodes.append(node)
            return
        positions = range(len(node.input))
        names = [self._read(node.input[i], half=i in takes) for i in positions]
        del node.input[:]
        node.input.extend(names)
        for attribute in node.attribute if node.op_type == "Cast" and makes else ():
            if attribute.name == "to":
                attribute.i = TensorProto.FLOAT16
        self._nodes.append(node)
        for position, name in enumerate(node.output):
            if name not in self._floats:
                continue
            if position not in makes:
                self._wide[name] = name
                continue
            self._narrow[name] = fresh(f"{name}.float16", self._taken) if name in self._outputs else name
            node.output[position] = self._narrow[name]

    def _halves(self, node: onnx.NodeProto) -> tuple[set[int], set[int]]:
        """Positions of float32 inputs and outputs that become float16."""
        floats = [i for i, name in enumerate(node.input) if name in self._floats]
        results = [i for i, name in enumerate(node.output) if name in self._floats]
        schema = None
        if not plain_domain(node.domain) and defs.has(node.op_type, self._opset):
            schema = defs.get_schema(node.op_type, self._opset)
        if schema is None or node.op_type in _TYPED:
            reason = "its type is an attribute's" if schema is not None else "unknown operator"
            self.kept += [(node.output[0], reason)] if floats or results else []
            return set(), set()
        takes = {i for i in floats if _allows(schema.inputs, i)}
        makes = {i for i in results if _allows(schema.outputs, i)}
        if (floats and not takes) or (results and not makes):
            self.kept.append((node.output[0], f"{node.op_type} knows no float16"))
        return takes, makes

    def _constant(self, node: onnx.NodeProto) -> bool:
        """Narrow the value of a Constant; False if it has none as a tensor."""
        for attribute in node.attribute:
            if attribute.name == "value":
                attribute.t.CopyFrom(self._narrowed(attribute.t, attribute.t.name))
                name = node.output[0]
                self._narrow[name] = fresh(f"{name}.float16", self._taken) if name in self._outputs else name
                node.output[0] = self._narrow[name]
                return True
        return False

    def _read(self, name: str, *, half: bool) -> str:
        """The name under which a tensor has the wanted type; made when it is first asked for."""
        if name not in self._floats:
            return name
        mine, other = (self._narrow, self._wide) if half else (self._wide, self._narrow)
        if name not in mine:
            suffix, code = ("float16", TensorProto.FLOAT16) if half else ("float32", TensorProto.FLOAT)
            if name in self._weights:
                mine[name] = name if half and name not in self._outputs else fresh(f"{name}.{suffix}", self._taken)
                weight = TensorProto()
                weight.CopyFrom(self._weights[name])
                weight.name = mine[name]
                self._made.append(self._narrowed(weight, mine[name]) if half else weight)
            else:
                mine[name] = fresh(f"{name}.{suffix}", self._taken)
                self._cast(other[name], mine[name], code)
        return mine[name]

    def _cast(self, source: str, target: str, code: int) -> None:
        self._nodes.append(
            helper.make_node("Cast", [source], [target], name=fresh(f"{target}.cast", self._taken), to=code)
        )

    def _narrowed(self, tensor: TensorProto, name: str) -> TensorProto:
        array, cut = narrowed(np.asarray(numpy_helper.to_array(tensor)), Half.FLOAT16)
        self.tensors += 1
        self.limited += cut
        return numpy_helper.from_array(array, name)

    def _declare(self) -> None:
        """Declared types of tensors that are float16 now, and inputs that are weights as well."""
        graph = self._model.graph
        now = set(self._narrow.values())
        for info in graph.value_info:
            if info.name in now and info.type.tensor_type.elem_type == TensorProto.FLOAT:
                info.type.tensor_type.elem_type = TensorProto.FLOAT16
        for index in reversed(range(len(graph.input))):
            if graph.input[index].name in self._weights:
                del graph.input[index]
        self._model.ir_version = max(self._model.ir_version, 4)


def _allows(parameters: Sequence[defs.OpSchema.FormalParameter], position: int) -> bool:
    """Whether the operator's parameter at this position may be float16; the last one may stand for several."""
    return bool(parameters) and _HALF in parameters[min(position, len(parameters) - 1)].types


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """ONNX's type code of every tensor of the graph."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:
        if len(tensor.raw_data) > _LARGE:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="left-out")
    inferred = shape_inference.infer_shapes(light).graph
    found = {tensor.name: int(tensor.data_type) for tensor in inferred.initializer}
    for info in [*inferred.input, *inferred.value_info, *inferred.output]:
        if info.type.HasField("tensor_type") and info.type.tensor_type.elem_type:
            found[info.name] = int(info.type.tensor_type.elem_type)
    return found
