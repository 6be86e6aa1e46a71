"""Several samples at once through a graph that was exported for one.

Most operators take any batch. Where the graph writes shapes down, mostly in a Reshape, the batch is found by comparing
with the shapes of one sample: the axis that has grown tells how many samples there are, and the elements before it tell
where the batch belongs in the result. Whether that was right is not proven but tried: `same_alone_and_together`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hetrl.errors import ModelError
from hetrl.finetune.node import Call, Result
from hetrl.finetune.operators.indexing import concat

TOLERANCE = 1e-4  # largest difference over largest value, between samples alone and together
Shape = tuple[int, ...]


@dataclass
class SampleShapes:
    """Shapes of one sample around the nodes whose result may have a written shape."""

    recording: bool = False
    _known: dict[int, tuple[tuple[Shape, ...], Shape]] = field(default_factory=dict)

    def record(self, index: int, call: Call, result: Result) -> None:
        if self.recording and call.node.op_type in ("Reshape", "Concat") and isinstance(result, Tensor):
            self._known[index] = (tuple(tuple(o.shape) for o in call.present), tuple(result.shape))

    def batched(self, index: int, call: Call) -> Tensor | None:
        """The result for several samples, None where the node's own rule gives it."""
        if index not in self._known or self.recording:
            return None
        operands, result = self._known[index]
        if call.node.op_type == "Reshape":
            shape = batched_shape(tuple(call.x.shape), operands[0], result)
            return None if shape is None else call.x.reshape(shape)
        return _concat(call, operands)


def batched_shape(shape: Shape, sample: Shape, result: Shape) -> Shape | None:
    """What a tensor of `shape` is reshaped to, if one sample's goes from shape `sample` to `result`.

    None if `shape` is that of one sample, or nothing tells where its batch is.
    """
    if len(shape) != len(sample) or not math.prod(sample):
        return None
    grown = [axis for axis, (now, one) in enumerate(zip(shape, sample, strict=True)) if now != one]
    if len(grown) != 1 or shape[grown[0]] % sample[grown[0]]:
        return None
    axis = grown[0]
    before = math.prod(sample[:axis])
    places = [place for place in range(len(result)) if math.prod(result[:place]) == before]
    if not places:
        return None
    free = [place for place in places if result[place] == 1]
    place = min(free or places, key=lambda p: abs(p - axis))
    batch = shape[axis] // sample[axis]
    return (*result[:place], batch * result[place], *result[place + 1 :])


def _concat(call: Call, sample: Sequence[Shape]) -> Tensor | None:
    """A constant of one sample, such as a class token, next to tensors of several: it is repeated."""
    axis = call.axis(0)
    sizes = [max(operand.shape[a] for operand in call.present) for a in range(call.x.ndim)]
    same = all(o.shape[a] == sizes[a] for o in call.present for a in range(call.x.ndim) if a != axis)
    if same or len(sample) != len(call.present):
        return None
    wide = [o.expand([-1 if a == axis else size for a, size in enumerate(sizes)]) for o in call.present]
    return concat(Call(call.node, tuple(wide)))


def same_alone_and_together(run: Callable[..., tuple[Tensor, ...]], samples: Sequence[Tensor]) -> bool:
    """Whether a batch gives what its samples give one by one, every output with the batch first.

    :param samples: one tensor per input, several samples each.
    """
    count = len(samples[0])
    with torch.no_grad():
        alone = [run(*(tensor[i : i + 1] for tensor in samples)) for i in range(count)]
        try:
            together = run(*samples)
        except ModelError:
            return False
    for position, output in enumerate(together):
        if any(len(one[position].shape) == 0 or len(one[position]) != 1 for one in alone):
            return False
        wanted = torch.cat([one[position] for one in alone]).double()
        if output.shape != wanted.shape:
            return False
        limit = TOLERANCE * max(float(wanted.abs().max()), 1e-12)
        if not float((output.double() - wanted).abs().max()) <= limit:
            return False
    return True
