"""Which operators each runtime's processor takes, what a delegate leaves to the CPU, and what partitioning adds."""
