"""An ONNX model ready for training as a torch module, and the trained numbers back in the same graph."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from hetrl.compress.weights import arrays, with_arrays
from hetrl.errors import ModelError
from hetrl.finetune.graph_module import GraphModule
from hetrl.finetune.prepare import prepared
from hetrl.finetune.trainable import running_statistics, trainable_weights


@dataclass(frozen=True)
class Network:
    """A model and its torch module.

    :param model: what is trained: the same operators as the one that was read.
    :param module: the same computation; its parameters carry the names of the model's initializers.
    """

    model: onnx.ModelProto
    module: GraphModule

    def trained(self) -> onnx.ModelProto:
        """The model with the module's parameters and running statistics, in the types that it stores them in."""
        stored = arrays(self.model)
        names = [name for name, _ in self.module.named_parameters()]
        names += sorted(running_statistics(self.model))
        new = self.module.arrays(names)
        return with_arrays(self.model, {name: new[name].astype(stored[name].dtype) for name in names})


def read_network(model: onnx.ModelProto) -> Network:
    """A complete model (functions inlined, weights inside) in torch.

    :raises ModelError: operators that training does not know, all of them named; nothing to train; BatchNormalization
        in training mode.
    """
    model = prepared(model)
    weights = trainable_weights(model)
    if not weights:
        raise ModelError("the model has no weights that could be trained")
    return Network(model, GraphModule(model, weights, running_statistics(model)))
