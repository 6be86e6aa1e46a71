"""What proposes plans: agents learn a policy, samplers search. Both propose through a ledger, which counts.

One driver (`tuner`) runs them all. A method is registered by name in the entry-point group `hetrl.agents` (for
`hetrl train --agent`) or `hetrl.samplers` (for `hetrl search --sampler`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from hetrl.agents.ledger import Ledger

C = TypeVar("C", bound=msgspec.Struct)


class Kind(StrEnum):
    """The two kinds of methods; the value is the word that people use."""

    AGENT = "agent"
    SAMPLER = "sampler"

    @property
    def group(self) -> str:
        """The entry-point group."""
        return f"hetrl.{self.value}s"

    @property
    def command(self) -> str:
        """The command that takes methods of this kind."""
        return "train" if self is Kind.AGENT else "search"


@dataclass
class AgentRun:
    """One method at work.

    :param name: the method's name, which its trials carry.
    :param folder: the run's folder, for files of the method's own; None where nothing is written.
    :param env_steps: decisions taken so far; an agent keeps it up to date.
    :param save_weights: writes what was learnt into a folder; the agent sets it once there is something to keep.
    """

    name: str
    ledger: Ledger
    seed: int
    folder: Path | None = None
    env_steps: int = 0
    save_weights: Callable[[Path], None] | None = None


class NoSettings(msgspec.Struct, frozen=True):
    """Of a method that has none."""


@dataclass(frozen=True)
class Method(Generic[C]):
    """A way to find plans.

    :param summary: what it does, in a line.
    :param config: type of its settings, a frozen `msgspec.Struct` of numbers, texts and booleans that refuses, with
        `ValueError`, those that make no sense.
    :param for_budget: the settings that suit a budget of so many evaluations.
    :param propose: proposes plans to `run.ledger` until it is exhausted, or nothing new comes to mind. With the same
        seed and the same answers it proposes the same plans.
    :param check: called before anything is measured or written; raises `MissingExtra` where a package is missing.
    """

    summary: str
    config: type[C]
    for_budget: Callable[[int], C]
    propose: Callable[[AgentRun, C], None]
    check: Callable[[], None] = lambda: None
