"""A torch module on any number of samples, in evaluation mode, as many at once as its graph takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor

from hetrl.errors import ModelError
from hetrl.finetune.batching import same_alone_and_together
from hetrl.finetune.graph_module import GraphModule
from hetrl.graph.wiring import constant_names

_TRIED = 3  # samples that show whether a graph takes batches


@dataclass(frozen=True)
class Predictor:
    """How many samples a module takes.

    :param batch: samples at once.
    :param exact: the graph takes this batch and no other.
    """

    module: GraphModule
    batch: int
    exact: bool

    @property
    def batched(self) -> bool:
        return self.batch > 1

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs of all samples, the samples first."""
        count = len(inputs[0])
        parts: list[tuple[Tensor, ...]] = []
        self.module.eval()
        with torch.no_grad():
            for start in range(0, count, self.batch):
                part = [tensor[start : start + self.batch] for tensor in inputs]
                missing = self.batch - len(part[0]) if self.exact else 0
                if missing:
                    part = [torch.cat([t, t[-1:].expand(missing, *t.shape[1:])]) for t in part]
                outputs = self.module(*part)
                parts.append(tuple(o[: self.batch - missing] for o in outputs) if missing else outputs)
        try:
            return tuple(torch.cat(list(output)) for output in zip(*parts, strict=True))
        except RuntimeError:
            raise ModelError("an output of the model has no axis for the samples") from None


def predictor(model: onnx.ModelProto, module: GraphModule, inputs: Sequence[Tensor], batch: int) -> Predictor:
    """Finds out whether the module, exported for a batch of one or of any, really takes several samples at once.

    :param model: what the module was read from.
    :param inputs: samples to try it with.
    """
    fixed = _exported_batch(model)
    if fixed > 1:
        return Predictor(module, fixed, exact=True)
    module.learn_shapes(*(tensor[:1] for tensor in inputs))
    several = batch > 1 and same_alone_and_together(module.eval(), [tensor[:_TRIED] for tensor in inputs])
    return Predictor(module, batch if several else 1, exact=False)


def _exported_batch(model: onnx.ModelProto) -> int:
    """The number of samples that the inputs declare; 1 where it is open."""
    constants = constant_names(model.graph)
    inputs = [info for info in model.graph.input if info.name not in constants]
    if any(not info.type.tensor_type.shape.dim for info in inputs):
        raise ModelError("an input of the model has no axis for the samples")
    return max(info.type.tensor_type.shape.dim[0].dim_value for info in inputs) or 1
