"""All that goes to stdout. Terminals get colours and their own width, pipes get plain text that is never cut."""

from __future__ import annotations

import io
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

PIPE_WIDTH = 10_000  # as good as endless


def write(text: str) -> None:
    """Print text. A reader that has gone away (`| head`) is no error."""
    if sys.stdout is None:  # closed by whoever started us
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again at exit
        raise typer.Exit(0) from None


def print_json(document: Any) -> None:
    """Print one JSON document."""
    import msgspec

    write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")


def is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def width() -> int:
    """Columns of text that stdout takes."""
    return shutil.get_terminal_size().columns if is_terminal() else PIPE_WIDTH


def show(*renderables: RenderableType) -> None:
    """Print tables (and strings, literally)."""
    from rich.console import Console
    from rich.text import Text

    terminal = is_terminal()
    console = Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=width(),
        highlight=False,
    )
    with console.capture() as captured:
        for renderable in renderables:
            if isinstance(renderable, str):
                console.print(Text(renderable), soft_wrap=True)  # commands stay in one piece, to be copied
            else:
                console.print(renderable)
    text = captured.get()
    write(text if terminal else "".join(f"{line.rstrip()}\n" for line in text.splitlines()))
