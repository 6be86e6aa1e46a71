"""The last word on a device whose numbers vary: the best plans and the defaults, measured in turns."""

from __future__ import annotations

from hetrl.agents.comparison import measured_in_turns
from hetrl.agents.ledger import Ledger
from hetrl.agents.problem import Problem
from hetrl.agents.rows import row_of
from hetrl.envs.evaluate import require_present
from hetrl.plan import Plan
from hetrl.results import Row

FINALISTS = 4  # of the plans that looked best; one lucky measurement among hundreds is likely


def finalists(problem: Problem, ledger: Ledger, count: int = FINALISTS) -> list[tuple[str, Plan]]:
    """The plans that looked best, by who proposed them, the best first; none that a last look at accuracy refuses."""
    found: list[tuple[str, Plan]] = []
    for trial in sorted((t for t in ledger.trials if ledger.keeps(t)), key=ledger.cost_ms):
        plan = ledger.plan(trial, None)
        if not problem.drops.refuses(plan):
            found.append((trial.by, plan))
        if len(found) == count:
            break
    return found


def duel(problem: Problem, ledger: Ledger, *, short: bool = False) -> tuple[str, Plan, list[Row]]:
    """Who proposed the winner, the winner, and the rows: it as `learned`, then the hand policies.

    Every plan is measured once, under all the names that it goes by; failures are rows as well.

    :param short: somebody waits for the end: only the best plan against the hand policy that looked best.
    :raises DeviceFailed: the device went away.
    """
    best, named = (
        (finalists(problem, ledger, 1), _best_known(problem, ledger))
        if short
        else (finalists(problem, ledger), problem.candidates)
    )
    found = measured_in_turns(problem, (plan for _, plan in [*best, *named] if not plan.stretched))
    for answer in found.values():
        require_present(answer, problem.device)

    def row(name: str, plan: Plan) -> Row:
        return row_of(name, plan, found[plan.key], problem)

    rows = [row(name, plan) for name, plan in named if plan.key in found]
    # A hand policy's plan is in the running as well, should none that was found be faster.
    running = [
        (by, plan, row("learned", plan))
        for by, plan in [*best, *named]
        if plan.key in found and not problem.drops.refuses(plan)
    ]
    kept = [one for one in running if one[2].keeps_budgets and one[2].latency_ms is not None]
    if not kept:
        by, plan = best[0]
        return by, plan, [row("learned", plan), *rows]
    by, plan, learned = min(kept, key=lambda one: one[2].latency_ms or 0.0)
    return by, plan, [learned, *rows]


def _best_known(problem: Problem, ledger: Ledger) -> list[tuple[str, Plan]]:
    """Of the hand policies that were measured the one that looked best, under all of its names."""
    known = [(name, plan, trial) for name, plan in problem.hand_plans() if (trial := ledger.known(plan)) is not None]
    kept = [(ledger.cost_ms(trial), trial.key) for _, _, trial in known if ledger.keeps(trial)]
    return [(name, plan) for name, plan, trial in known if kept and trial.key == min(kept)[1]]
