"""All operators that can be trained through, by name."""

from __future__ import annotations

from hetrl.finetune.node import Operators
from hetrl.finetune.operators import (
    convolutions,
    elementwise,
    indexing,
    normalization,
    pooling,
    products,
    reductions,
    resize,
    shapes,
)

OPERATORS: Operators = {
    **convolutions.OPERATORS,
    **elementwise.OPERATORS,
    **indexing.OPERATORS,
    **normalization.OPERATORS,
    **pooling.OPERATORS,
    **products.OPERATORS,
    **reductions.OPERATORS,
    **resize.OPERATORS,
    **shapes.OPERATORS,
}
