"""Hand policies: published strategies at full strength, found by entry point like anybody else's."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from hetrl.plugins import load_all

if TYPE_CHECKING:
    from hetrl.agents.policies.base import HandPolicy

GROUP = "hetrl.policies"


@cache
def policy_catalog() -> tuple[HandPolicy, ...]:
    """All registered hand policies, by id."""
    return tuple(sorted(load_all(GROUP).values(), key=lambda policy: policy.id))


def find_policy(name: str) -> HandPolicy:
    """The policy of that id.

    :raises UnknownName: there is none.
    """
    from hetrl.errors import UnknownName

    for policy in policy_catalog():
        if policy.id == name:
            return policy
    raise UnknownName("policy", name, [p.id for p in policy_catalog()], "hetrl policies")
