"""Layers of low rank: convolutions and products factored into chains of smaller ones."""

from hetrl.compress.low_rank.factor import Factored, FactoredLayer, LowRankReport, factor
from hetrl.compress.low_rank.layers import LeftLayer
from hetrl.compress.low_rank.policy import LowRank, Scheme

__all__ = ["Factored", "FactoredLayer", "LeftLayer", "LowRank", "LowRankReport", "Scheme", "factor"]
