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
        keys = ("id", "family", "granularity", "source", "summary")
        output.print_json({"policies": [{k: getattr(p, k) for k in keys} for p in policy_catalog()]})
        return
    from hetrl.report.tables import grid

    table = grid("policy", "family", "granularity", "what it does", "from")
    for policy in policy_catalog():
        table.add_row(policy.id, policy.family, str(policy.granularity), policy.summary, policy.source)
    output.show(table)
