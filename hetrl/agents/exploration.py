"""Policies that never stop exploring."""

from __future__ import annotations

import math

import torch
from torch import nn


def lean(action_net: nn.Module, inertia: float) -> None:
    """Put the logit of the first choice, the one that does nothing, so far ahead of the others.

    Uniform choices would begin a new segment at almost every fusion group, and plans of many segments are slow.
    """
    assert isinstance(action_net, nn.Linear)
    with torch.no_grad():
        action_net.bias[0] += inertia


class BoundedLogits(nn.Module):
    """Keeps logits within [-bound, bound], so that no legal choice ever becomes impossible.

    A policy that has settled would propose the same plan for ever, and only new plans teach anything. With A choices
    per decision, a choice at the lower bound beside one at the upper has probability exp(-2 bound), so that a plan of
    n decisions has about n A exp(-2 bound) changes.
    """

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    @staticmethod
    def for_changes(changes: float, decisions: int, choices: int) -> BoundedLogits:
        """The bound at which a settled policy still makes so many changes per plan."""
        return BoundedLogits(max(1.0, 0.5 * math.log(decisions * choices / changes)))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return self.bound * torch.tanh(logits / self.bound)
