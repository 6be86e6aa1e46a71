"""What runtimes do on top of any plan: operator fusion, buffer reuse, reuse over video frames, low-rank layers."""
