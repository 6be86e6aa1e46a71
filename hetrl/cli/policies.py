"""`hetrl policies`."""

from __future__ import annotations

import typer

from hetrl.cli import options, output

app = typer.Typer(add_completion=False)


@app.command()
def policies(json: options.Json = False) -> None:
    """List the published strategies that hetrl compares with and learns from."""
    from hetrl.agents.policies import policy_catalog

    if json:
        output.print_json({"policies": policy_catalog()})
        return
    from hetrl.report.tables import grid

    table = grid("policy", "family", "granularity", "what it does", "from")
    for policy in policy_catalog():
        table.add_row(policy.id, policy.family, str(policy.granularity), policy.summary, policy.source)
    output.show(table)
