"""Decisions and plans in the making, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hetrl.envs.space import CONTINUE, PlanSpace

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from hetrl.envs.core import Finished
    from hetrl.envs.device_core import DeviceCore
    from hetrl.measurement import Measurement

UNDECIDED = "?"


def decision_names(space: PlanSpace) -> tuple[str, ...]:
    """What each decision of a plan is about: the global ones' names, then `place <main operator of the group>`."""
    anchors = (space.graph.nodes[group.anchor].id for group in space.graph.groups)
    return (*(d.name for d in space.globals), *(f"place {anchor}" for anchor in anchors))


def describe_choice(space: PlanSpace, step: int, choice: int) -> str:
    """What a choice means for the decision at `step`."""
    if step < len(space.globals):
        choices = space.globals[step].choices
        return choices[choice] if 0 <= choice < len(choices) else "no such choice"
    if choice == CONTINUE:
        return "same segment"
    if not 0 < choice <= len(space.options):
        return "no such choice"
    option = space.options[choice - 1]
    names = [space.engine.processors[p].id for p in option.processors]
    if not option.split:
        return names[0]
    parts = (f"{name} {share} %" for name, share in zip(names, option.shares_pct, strict=True))
    return f"{' + '.join(parts)} by {option.axis.value}"


def render_text(core: DeviceCore, finished: Finished | None) -> str:
    """One line per decision; below them, of a complete plan, what it gave and its timeline."""
    from hetrl.report.gantt import gantt_text

    names = decision_names(core.space)
    taken = core.decisions(0)
    said = [describe_choice(core.space, step, int(choice)) for step, choice in enumerate(taken)]
    said += [UNDECIDED] * (len(names) - len(said))
    width = max(map(len, names))
    lines = [_title(core), *(f"{name:<{width}}  {words}" for name, words in zip(names, said, strict=True))]
    if finished is not None:
        measured = core.measurement(0)
        lines += [_result(core, finished, measured)] + [gantt_text(measured.segments)] * measured.ok
    return "\n".join(lines) + "\n"


def render_rgb(core: DeviceCore, finished: Finished | None) -> npt.NDArray[np.uint8]:
    """The timeline of a complete plan, an empty one before; H x W x 3.

    :raises MissingExtra: matplotlib is not installed.
    """
    from hetrl.report.gantt import gantt_rgb

    if finished is None:
        return gantt_rgb((), title=_title(core))
    measured = core.measurement(0)
    return gantt_rgb(measured.segments, title=f"{_title(core)}: {_result(core, finished, measured)}")


def _title(core: DeviceCore) -> str:
    model, device = core.setting.graph.name, core.setting.planner.spec.id
    return f"{model} on {device}, decision {core.step_number} of {core.space.length}"


def _result(core: DeviceCore, finished: Finished, measured: Measurement) -> str:
    if measured.error is not None:
        return f"failed: {measured.error.message}"
    budgets = "keeps the budgets" if core.final_infos(finished)["keeps_budgets"][0] else "breaks a budget"
    return f"{finished.outcomes.latency_ms[0]:.3f} ms (CPU alone {core.reference_ms:.3f} ms), {budgets}"
