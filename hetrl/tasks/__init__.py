"""Several requests of several models at once: the `task` granularity. `compare.compare_tasks` is the public call."""
