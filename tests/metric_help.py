"""Metrics that do not work."""

import numpy as np


def raises(outputs: np.ndarray, labels: np.ndarray) -> float:
    raise ValueError("this metric raises")


def nothing(outputs: np.ndarray, labels: np.ndarray) -> None:
    """Says nothing."""
