"""Programs that load bundles without hetrl: each file stands for itself, and is there to be copied into an app."""
