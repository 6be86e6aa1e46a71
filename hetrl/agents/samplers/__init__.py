"""Searches for plans that learn no policy: samplers of Optuna, annealing, beam search, random plans."""
