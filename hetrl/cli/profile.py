"""`hetrl profile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetrl.cli import options, output
from hetrl.errors import UsageError

if TYPE_CHECKING:
    from hetrl.envs.enumerate import Restriction
    from hetrl.profiling import Profile
    from hetrl.support.qnn import NpuSupport

ON_DEVICE, ON_NPU = "With --device: ", "With --npu-support: "

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def profile(  # noqa: PLR0913, PLR0917 (typer reads the options from the parameters)
    name: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A built-in model's name or an ONNX file.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME|FILE", help="The same, in the way of other commands.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="ADDRESS", help="Record on host, ssh://USER@BOARD, adb:SERIAL.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The recording, .jsonl; or the device file's copy, .json."),
    ] = None,
    plans: Annotated[
        int | None, typer.Option("--plans", metavar="N", help=f"{ON_DEVICE}random plans to measure (40).")
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", metavar="N", help=f"{ON_DEVICE}measure each plan N times, the others between (1)."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--enumerate", help=f"{ON_DEVICE}measure every plan instead, of a small plan space.")
    ] = False,
    max_segments: Annotated[
        int | None,
        typer.Option("--max-segments", metavar="K", help="With --enumerate: only plans of so many segments."),
    ] = None,
    processors: Annotated[
        str | None, typer.Option("--processors", metavar="A,B", help="With --enumerate: only on these processors.")
    ] = None,
    no_splits: Annotated[
        bool, typer.Option("--no-splits", help="With --enumerate: no operators that processors share.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="With --enumerate: refuse more plans (2000).")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="NAME", help="Engine set to record, or to change (the first with an NPU)."),
    ] = None,
    seed: options.Seed = 0,
    npu_support: Annotated[
        bool, typer.Option("--npu-support", help="Ask Qualcomm's HTP backend which operators it takes (extra qnn).")
    ] = False,
    device_file: Annotated[
        str | None,
        typer.Option("--device-file", metavar="NAME|FILE", help=f"{ON_NPU}a device to copy with the answer."),
    ] = None,
    input_shape: options.InputShapes = None,
    seeded_weights: options.SeededWeights = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Record how fast a model's parts run on a device; or say which of its operators an NPU takes.

    A recording has the model whole on every processor, and random plans that cut it. The file is continued if it
    exists, and Ctrl-C keeps it. `hetrl calibrate` makes a device file of it, `--device replay:FILE` answers from it.

    With --npu-support, operator types that are refused wherever they occur are added to `unsupported` of the file's NPU
    or DSP.
    """
    given = name if model is None else model
    if given is None or (name is not None and model is not None):
        raise UsageError("profile takes one model", "hetrl profile --device host --model resnet18 --out FILE.jsonl")
    options.check_numbers(None, seed)
    shapes = options.input_shapes(input_shape)
    if npu_support:
        recording = {
            "--device": device, "--plans": plans, "--rounds": rounds, "--enumerate": every,
            "--max-segments": max_segments, "--processors": processors, "--no-splits": no_splits, "--limit": limit,
        }  # fmt: skip
        options.refuse(recording, "is for recordings", "leave it or --npu-support away")
        _npu_support(given, device_file, out, engine, shapes, json=json)
        return
    if device is None:
        raise UsageError("profile has nothing to find out", "add --npu-support, or --device host --out FILE.jsonl")
    options.refuse({"--device-file": device_file}, "is for NPUs", "add --npu-support, or leave it away")
    if out is None:
        raise UsageError("a recording needs a file", f"add --out {Path(given).stem}.jsonl")
    within = None
    if every:
        options.refuse({"--plans": plans}, "is for random plans", "leave it or --enumerate away")
        within = _restriction(max_segments, processors, no_splits=no_splits)
    else:
        some = {"--max-segments": max_segments, "--processors": processors, "--no-splits": no_splits, "--limit": limit}
        options.refuse(some, "is for a whole plan space", "add --enumerate")

    from hetrl.api import profile as record
    from hetrl.cli.progress import progress

    found = record(
        given,
        device,
        out,
        plans=plans,
        rounds=1 if rounds is None else rounds,
        within=within,
        limit=limit,
        engine=engine,
        seed=seed,
        input_shapes=shapes,
        seeded_weights=seeded_weights,
        progress=progress(quiet),
    )
    if json:
        output.print_json(found)
    else:
        _show_profile(found, _again(given, input_shape))
    if found.interrupted:
        raise typer.Exit(130)


def _restriction(max_segments: int | None, processors: str | None, *, no_splits: bool) -> Restriction:
    from hetrl.envs.enumerate import Restriction

    names = None if processors is None else tuple(name.strip() for name in processors.split(","))
    return Restriction(max_segments=max_segments, processors=names, splits=not no_splits)


def _again(model: str, input_shape: list[str] | None) -> str:
    """What the next command needs to be told of a model that is not built in."""
    import shlex

    from hetrl.zoo import names

    words = [] if model in names() else ["--model", model]
    words += [word for shape in input_shape or () for word in ("--input-shape", shape)]
    return "".join(f" {shlex.quote(word)}" for word in words)


def _show_profile(found: Profile, again: str) -> None:
    """What the file holds, and the next command.

    :param again: options of it.
    """
    import shlex

    from hetrl.report.tables import grid

    table = grid("processor", ">whole model, ms")
    for name, latency_ms in found.whole_ms.items():
        table.add_row(name, "-" if latency_ms is None else f"{latency_ms:.2f}")
    done, wanted = found.known + found.measured, found.plans * found.rounds
    output.show(
        f"{found.model} on {found.device}, {found.engine}, {found.condition}",
        table,
        f"{found.file} holds {done} of {wanted} measurements ({found.measured} new, {found.failed} plans without "
        "numbers), and "
        f"{found.covered} of {found.pairs} pairs of a fusion group and a processor",
        *found.notes,
    )
    if found.interrupted:
        output.show("next       the same command goes on")
    else:
        output.show(f"next       hetrl calibrate {shlex.quote(found.file)}{again}")


def _npu_support(
    model: str,
    device_file: str | None,
    out: Path | None,
    engine: str | None,
    shapes: dict[str, tuple[int, ...]] | None,
    *,
    json: bool,
) -> None:
    if (device_file is None) != (out is None):
        raise UsageError("--device-file and --out belong together", "give both, or neither")
    if engine is not None and device_file is None:
        raise UsageError("--engine needs a device file to change", "add --device-file and --out")

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
    _show_support(support)
    if stored:
        output.show(f"wrote {out}; {stored['processor']} refuses {', '.join(support.unsupported) or 'nothing more'}")


def _show_support(support: NpuSupport) -> None:
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
