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
    """The policy of that id, with the options behind it: `mace_gpu_image:slice_ms=1,queue_window=4`.

    :raises UnknownName: there is none of that id, or an option that does not exist.
    :raises UsageError: options that the policy does not take, or that make no sense.
    """
    from dataclasses import replace

    from hetrl.agents.policies.options import parse_options
    from hetrl.errors import UnknownName, UsageError

    policy_id, colon, text = name.partition(":")
    policy = next((p for p in policy_catalog() if p.id == policy_id), None)
    if policy is None:
        raise UnknownName("policy", policy_id, [p.id for p in policy_catalog()], "hetrl policies")
    if not colon:
        return policy
    if not policy.options:
        able = " and ".join(p.id for p in policy_catalog() if p.options)
        raise UsageError(f"policy {policy_id!r} takes no options, {able} do", f"leave ':{text}' away")
    return replace(policy, id=name, kernels=parse_options(text, policy_id))
