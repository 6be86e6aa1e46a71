"""`hetrl profile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetrl.cli import options, output
from hetrl.errors import UsageError

if TYPE_CHECKING:
    from hetrl.support.qnn import NpuSupport

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def profile(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A built-in model's name or an ONNX file.")],
    npu_support: Annotated[
        bool, typer.Option("--npu-support", help="Ask Qualcomm's HTP backend which operators it takes (extra qnn).")
    ] = False,
    device_file: Annotated[
        str | None, typer.Option("--device-file", metavar="NAME|FILE", help="A device to copy with the answer.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.json", help="Where the copy goes.")] = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="NAME", help="Engine set to change (the first with an NPU or DSP)."),
    ] = None,
    input_shape: options.InputShapes = None,
    json: options.Json = False,
) -> None:
    """Say which operators of a model an NPU takes, and store what it refuses in a device file.

    Operator types that are refused wherever they occur are added to `unsupported` of the file's NPU or DSP.
    """
    if not npu_support:
        raise UsageError("profile has nothing to find out", "add --npu-support")
    if (device_file is None) != (out is None):
        raise UsageError("--device-file and --out belong together", "give both, or neither")
    if engine is not None and device_file is None:
        raise UsageError("--engine needs a device file to change", "add --device-file and --out")
    shapes = options.input_shapes(input_shape)

    from hetrl.device_bridge.spec import load_spec
    from hetrl.support import device_file as files

    spec = None
    if device_file is not None and out is not None:
        files.check_out(out)
        spec = load_spec(device_file)
        files.with_unsupported(spec, (), "", engine)  # says at once what is wrong with the choice

    from hetrl.support import qnn

    support = qnn.npu_support(model, shapes)
    stored: dict[str, object] = {}
    if spec is not None and out is not None:
        note = f"unsupported also by the {support.backend}, asked about {support.model}."
        changed, processor = files.with_unsupported(spec, support.unsupported, note, engine)
        files.write(changed, out)
        stored = {"device_file": str(out), "processor": processor}
    if json:
        output.print_json(qnn.as_json(support) | stored)
        return
    show(support)
    if stored:
        output.show(f"wrote {out}; {stored['processor']} refuses {', '.join(support.unsupported) or 'nothing more'}")


def show(support: NpuSupport) -> None:
    """A line, the operator types, and every refused operator."""
    from hetrl.report.tables import grid
    from hetrl.support.qnn import by_type

    taken = len(support.nodes) - len(support.refused)
    output.show(f"{support.backend}: takes {taken} of {len(support.nodes)} operators of {support.model}", "")
    if support.problem:
        output.show(f"but it cannot prepare them as one graph here: {support.problem}", "")
    types = grid("operator", ">operators", ">refused", "reason")
    for op_type, total, refused, reason in by_type(support):
        types.add_row(op_type, str(total), str(refused), reason)
    output.show(types)
    if support.refused:
        nodes = grid("refused", "operator", "reason")
        for node in support.refused:
            nodes.add_row(node.node, node.op_type, node.reason)
        output.show("", nodes)
