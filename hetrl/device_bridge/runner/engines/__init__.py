"""Engines that run submodels; each is imported when the first piece needs it."""
