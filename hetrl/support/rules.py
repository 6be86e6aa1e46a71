"""Support rules: what each runtime's processor takes, one row per operator in `hetrl/data/operator_support.csv`.

A rule set is a list of what is taken; what it does not list is refused. `operator` is the runtime's own name,
`onnx` the ONNX types that become it. Rows with `takes` = `no` carry the reason.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from hetrl.errors import UnknownName

FILE = "operator_support.csv"
UNLISTED = "not in the list"


@dataclass(frozen=True)
class Verdict:
    """One row: whether an operator is taken, under which condition or why not, and who says so."""

    operator: str
    onnx: tuple[str, ...]
    takes: bool
    note: str
    source: str


@dataclass(frozen=True)
class RuleSet:
    """The operators of one runtime's processor; `verdicts` by the runtime's own operator name."""

    name: str
    verdicts: Mapping[str, Verdict]

    def refusal(self, operator: str) -> str | None:
        """Why an operator of the runtime's own name is refused; None if it is taken."""
        verdict = self.verdicts.get(operator)
        if verdict is None:
            return UNLISTED
        return None if verdict.takes else verdict.note

    def onnx_refusal(self, op_type: str) -> str | None:
        """The same for an ONNX operator type: taken if any operator that it may become is."""
        found = [verdict for verdict in self.verdicts.values() if op_type in verdict.onnx]
        if not found:
            return UNLISTED
        return None if any(verdict.takes for verdict in found) else found[0].note

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(verdict.source for verdict in self.verdicts.values()))


@cache
def rule_sets() -> Mapping[str, RuleSet]:
    """All rule sets by name."""
    with (resources.files("hetrl.data") / FILE).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    sets: dict[str, dict[str, Verdict]] = {}
    for row in rows:
        verdict = Verdict(
            row["operator"], tuple(row["onnx"].split()), row["takes"] == "yes", row["note"], row["source"]
        )
        sets.setdefault(row["rules"], {})[verdict.operator] = verdict
    return {name: RuleSet(name, verdicts) for name, verdicts in sets.items()}


def rule_set(name: str) -> RuleSet:
    """One rule set.

    :raises UnknownName: there is none of that name.
    """
    if name not in rule_sets():
        raise UnknownName("rule set", name, rule_sets(), "docs/support.md")
    return rule_sets()[name]
