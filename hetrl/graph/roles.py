"""What a finished group reads, how it reads it, and along which axes its work can be cut."""

from __future__ import annotations

from collections.abc import Sequence

from hetrl.graph.geometry import geometry
from hetrl.graph.kinds import is_identity, weight_position
from hetrl.graph.model import FusionGroup, Geometry, GroupInput, InputRole, OpKind
from hetrl.graph.operator import Operand, Operator

_FEWEST_POINTWISE_CHANNELS = 8
_PER_CHANNEL_VECTORS = frozenset({"BatchNormalization", "QuantizeLinear", "DequantizeLinear"})


def is_pointwise(operator: Operator) -> bool:
    """Whether each output element depends on the input elements at its own place only (and on constants)."""
    if len(operator.results) != 1:
        return False
    if operator.op_type == "BatchNormalization":
        return operator.kind is OpKind.NORM and len(operator.activations) == 1
    return operator.kind is OpKind.ELEMENTWISE or is_identity(operator.kind, operator.operands, operator.results)


class GroupView:
    """A group being described.

    :param members: indices into `operators`, ascending; the last one is the exit.
    """

    def __init__(self, operators: Sequence[Operator], members: Sequence[int]) -> None:
        self._operators = operators
        self._members = tuple(members)
        self._inside = {r.name: index for index in members for r in operators[index].results}
        self._anchor = self._find_anchor()
        self._exit = operators[self._members[-1]]

    def group(self, index: int) -> FusionGroup:
        inputs = tuple(GroupInput(name, self._merged_role(name)) for name in self._external())
        return FusionGroup(
            index=index,
            nodes=self._members,
            anchor=self._anchor,
            inputs=inputs,
            outputs=tuple(result.name for result in self._exit.results),
            splits_height=self._splits_height(inputs),
            splits_channels=self._splits_channels(),
        )

    def _find_anchor(self) -> int:
        computing = [m for m in self._members if self._operators[m].kind is not OpKind.VIEW]
        heavy = [m for m in computing if not is_pointwise(self._operators[m])]
        return (heavy or computing or list(self._members[-1:]))[0]

    def _external(self) -> list[str]:
        """External activations, each once: what feeds the anchor first, its data before its other operands."""
        found: dict[str, None] = {}

        def trace(member: int) -> None:
            for operand in self._operators[member].activations:
                source = self._inside.get(operand.name)
                if source is None:
                    found[operand.name] = None
                else:
                    trace(source)

        trace(self._anchor)
        for member in self._members:
            found |= dict.fromkeys(o.name for o in self._operators[member].activations if o.name not in self._inside)
        return list(found)

    def _merged_role(self, name: str) -> InputRole:
        roles = {
            self._role(member, position)
            for member in self._members
            for position, operand in enumerate(self._operators[member].operands)
            if operand is not None and operand.name == name
        }
        if len(roles) == 1:
            return roles.pop()
        shape = geometry(self._operators[self._anchor])
        # A window of stride 1 that keeps the shape covers the aligned row; any other mixture needs everything.
        covered = InputRole.WHOLE not in roles and shape.stride_h == 1 and shape.stride_w == 1
        return InputRole.WINDOW if covered else InputRole.WHOLE

    def _role(self, member: int, position: int) -> InputRole:
        operator = self._operators[member]
        if member == self._anchor and operator.kind in (OpKind.CONV, OpKind.POOL):
            return InputRole.WINDOW if position == 0 and _is_image(operator.out) else InputRole.WHOLE
        if operator.kind is OpKind.VIEW and is_pointwise(operator) and operator is not self._exit:
            roles = {
                self._role(reader, place)
                for reader in self._members
                for place, operand in enumerate(self._operators[reader].operands)
                if operand is not None and operand.name == operator.out.name
            }
            return roles.pop() if len(roles) == 1 else InputRole.WHOLE
        operand = operator.operand(position)
        aligned = is_pointwise(operator) and operand is not None and operand.shape == self._exit.out.shape
        return InputRole.ALIGNED if aligned else InputRole.WHOLE

    def _followers(self) -> list[Operator]:
        return [self._operators[m] for m in self._members if m != self._anchor]

    def _splits_height(self, inputs: Sequence[GroupInput]) -> bool:
        anchor = self._operators[self._anchor]
        plain = anchor.kind in (OpKind.CONV, OpKind.POOL) or is_pointwise(anchor)
        pointwise = [*self._followers(), anchor] if is_pointwise(anchor) else self._followers()
        return (
            plain
            and _is_image(anchor.out)
            and _is_image(self._exit.out)
            and self._exit.out.shape[2] >= 2
            and len(self._exit.results) == 1
            and all(is_pointwise(follower) for follower in self._followers())
            and all(i.role is not InputRole.WHOLE for i in inputs)
            and all(_same_for_all_rows(operator) for operator in pointwise)
        )

    def _splits_channels(self) -> bool:
        anchor, shape = self._operators[self._anchor], geometry(self._operators[self._anchor])
        before = [self._operators[m] for m in self._members if m < self._anchor]
        behind = [self._operators[m] for m in self._members if m > self._anchor]
        if len(self._exit.results) > 1 or not all(is_pointwise(follower) for follower in behind):
            return False
        if any(self._role(m, p) is InputRole.WHOLE for m, p in self._external_reads() if m > self._anchor):
            return False
        if _cuts_weights(anchor, shape):
            # The whole input is read anyway, so views on the way to it do not matter.
            return shape.out_channels >= 2 and all(_only_view(operator) for operator in before)
        if before or not _is_image(self._exit.out):
            return False
        if anchor.kind is OpKind.POOL or shape.depthwise:
            return len(anchor.activations) == 1
        wide = self._exit.out.shape[1] >= _FEWEST_POINTWISE_CHANNELS
        whole = any(self._role(m, p) is InputRole.WHOLE for m, p in self._external_reads())
        return is_pointwise(anchor) and wide and not whole

    def _external_reads(self) -> list[tuple[int, int]]:
        return [
            (member, position)
            for member in self._members
            for position, operand in enumerate(self._operators[member].operands)
            if operand is not None and not operand.constant and operand.name not in self._inside
        ]


def _cuts_weights(anchor: Operator, shape: Geometry) -> bool:
    """Whether output channels are rows or columns of a constant weight that can be sliced."""
    if anchor.op_type in ("LSTM", "GRU", "RNN") or len(anchor.activations) != 1:
        return False
    weight = anchor.operand(weight_position(anchor.op_type))
    if weight is None or not weight.constant or shape.groups != 1:
        return False
    if anchor.kind in (OpKind.CONV, OpKind.CONV_TRANSPOSE):
        return _is_image(anchor.out)
    return anchor.kind is OpKind.GEMM and len(weight.shape) == 2 and len(anchor.out.shape) >= 2


def _only_view(operator: Operator) -> bool:
    return operator.kind is OpKind.VIEW


def _is_image(operand: Operand) -> bool:
    return len(operand.shape) == 4


def _same_for_all_rows(operator: Operator) -> bool:
    """Whether the constants of a pointwise operator on NCHW do not vary along the height."""
    if operator.op_type in _PER_CHANNEL_VECTORS:
        return True
    return all(len(c.shape) < 2 or c.shape[-2] == 1 for c in operator.constants)
