"""`hetrl doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from hetrl.cli import options, output

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def doctor(
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME|ADDRESS", help="Look at this device (host, ssh://..., adb:...) alone."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Check engines, processors and ways to devices, and say what to do where something is amiss.

    Exits 1 if something that is needed does not work.
    """
    from hetrl.doctor import examine

    findings = examine(device)
    sound = not any(finding.fatal for finding in findings)
    if json:
        output.print_json({"ok": sound, "findings": findings})
    else:
        width = max(len(finding.check) for finding in findings)
        lines = [
            f"{f.state.value:<8} {f.check:<{width}}  {'; '.join(filter(None, (f.detail, f.hint)))}" for f in findings
        ]
        output.show(*lines, "", "all that is needed works" if sound else "something that is needed does not work")
    if not sound:
        raise typer.Exit(1)
