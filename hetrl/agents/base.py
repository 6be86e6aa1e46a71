"""What an agent is given: it proposes plans through a ledger and learns; everything else is the driver's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hetrl.agents.ledger import Ledger


@dataclass
class AgentRun:
    """One agent at work.

    :param name: the agent's name, which its trials carry.
    :param env_steps: decisions taken so far; the agent keeps it up to date.
    :param save_weights: writes what was learnt into a folder; the agent sets it once there is something to keep.
    """

    name: str
    ledger: Ledger
    seed: int
    env_steps: int = 0
    save_weights: Callable[[Path], None] | None = None


class Agent(Protocol):
    """Registered in the entry-point group `hetrl.agents`."""

    def __call__(self, run: AgentRun) -> None:
        """Propose plans to `run.ledger` until it is exhausted."""
