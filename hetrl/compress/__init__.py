"""Smaller versions of a model: fewer channels, layers of low rank, narrower numbers; on shapes and on weights."""
