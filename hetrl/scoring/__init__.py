"""How well a model does what it is for: measured on data, compared with another model, or predicted."""
