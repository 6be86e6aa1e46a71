"""`hetrl policies`."""

from __future__ import annotations

import typer

from hetrl.cli import options, output

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def policies(json: options.Json = False) -> None:
    """List the hand policies: published strategies."""
    from hetrl.agents.policies import policy_catalog

    if json:
        keys = ("id", "family", "granularity", "source", "summary", "options")
        found = [{k: getattr(p, k) for k in keys} | {"engine": p.runtime} for p in policy_catalog()]
        output.print_json({"policies": found})
        return
    from hetrl.report.tables import grid

    table = grid("policy", "family", "engine", "granularity", "what it does", "from")
    for policy in policy_catalog():
        engine = policy.runtime or "any"
        options = f"; options: {', '.join(policy.options)}" if policy.options else ""
        table.add_row(policy.id, policy.family, engine, policy.granularity, policy.summary + options, policy.source)
    output.show(table)
