"""The default agent: a policy proposes, the surrogate ranks, the device measures, local search refines."""
