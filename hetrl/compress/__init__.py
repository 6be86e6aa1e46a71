"""Smaller versions of a model: what compression makes of its shapes."""
