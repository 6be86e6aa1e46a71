"""What the original network says of the samples."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from torch import Tensor

from hetrl.finetune.graph_module import GraphModule
from hetrl.finetune.losses import mean_square
from hetrl.finetune.predictor import Predictor, predictor
from hetrl.finetune.prepare import prepared

LARGEST_KEPT_BYTES = 256 * 2**20  # outputs beyond are computed again in every epoch
_SCALED = 32  # samples whose outputs tell how large outputs are


class Teacher:
    """The original's outputs for chosen samples: computed once where they are small."""

    def __init__(self, model: onnx.ModelProto, inputs: Sequence[Tensor], batch: int) -> None:
        model = prepared(model)
        self._inputs = inputs
        self._predict: Predictor = predictor(model, GraphModule(model, (), ()), inputs, batch)
        some = self._predict([tensor[:_SCALED] for tensor in inputs])
        self.shapes = tuple(tuple(output.shape[1:]) for output in some)
        self.scales = tuple(mean_square(output) for output in some)
        size = sum(output[0].numel() * output.element_size() for output in some) * len(inputs[0])
        self._kept = self._predict(inputs) if size <= LARGEST_KEPT_BYTES else None

    def __call__(self, chosen: Tensor) -> tuple[Tensor, ...]:
        if self._kept is not None:
            return tuple(output[chosen] for output in self._kept)
        return self._predict([tensor[chosen] for tensor in self._inputs])
