"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from hetrl.finetune.node import Call, Operators


def gemm(call: Call) -> Tensor:
    a, b, c = call.x, call.tensor(1), call.optional(2)
    a = a.mT if call.node.integer("transA", 0) else a
    b = b.mT if call.node.integer("transB", 0) else b
    product = call.node.number("alpha", 1.0) * (a @ b)
    return product if c is None else product + call.node.number("beta", 1.0) * c


def matmul(call: Call) -> Tensor:
    return torch.matmul(call.x, call.tensor(1))


def einsum(call: Call) -> Tensor:
    return torch.einsum(call.node.text("equation", ""), *call.present)


OPERATORS: Operators = {"Gemm": gemm, "MatMul": matmul, "Einsum": einsum}
