"""`hetrl run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetrl.cli import options, output
from hetrl.errors import UsageError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def run(
    bundle: Annotated[
        str | None, typer.Argument(metavar="BUNDLE", help="What `hetrl export` wrote (with --print-loader: a format).")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--input", metavar="FILE.npz", help="An array for each input (the bundle's sample).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.npz", help="Write the outputs there.")] = None,
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", help="Inferences that are timed.")] = 15,
    print_loader: Annotated[
        bool, typer.Option("--print-loader", help="Print a program for apps that loads such bundles, and exit.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Run a bundle in its runtime, on this computer."""
    if print_loader:
        from hetrl.running import loader_text

        output.write(loader_text(bundle or "onnxruntime"))
        return
    if bundle is None:
        raise UsageError("run takes a bundle", "`hetrl export` writes one")
    if not 1 <= repeats <= 100_000:
        raise UsageError(f"--repeats {repeats} is out of range", "give 1 to 100000")

    from hetrl.running import run_bundle

    done = run_bundle(Path(bundle), data, out, repeats)
    if json:
        output.print_json(done)
        return
    from hetrl.export.base import merged, moved_words

    interval = "".join(f" ({low:.4g} to {high:.4g})" for low, high in filter(None, [done.latency_interval_ms]))
    lines = [f"{done.format}: {done.latency_ms:.4g} ms{interval}, measured, median of {done.inferences}"]
    lines += [f"{o.name}  {o.dtype} {'x'.join(map(str, o.shape))}, largest at {o.largest_at}" for o in done.outputs]
    lines += [f"moved  {moved_words(moved)}" for moved in merged(done.moved)]
    output.show(*lines)
