"""`hetrl`: finds the command, and turns whatever goes wrong into one line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hetrl import __version__
from hetrl.errors import HetrlError, UnknownName

COMMANDS = (
    "train", "search", "compare", "measure", "compress", "score", "tasks", "plan", "export", "run", "validate",
    "profile", "calibrate", "devices", "models", "policies", "methods", "doctor",
)  # fmt: skip
INTERRUPTED = 130
INTERNAL = 70  # EX_SOFTWARE: a defect of hetrl


class Commands(TyperGroup):
    """Imports `hetrl.cli.<name>` when the command is asked for."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS:
            command = typer.main.get_command(import_module(f"hetrl.cli.{cmd_name}").app)
            command.name = cmd_name
            return command
        if cmd_name.startswith("-") or ctx.resilient_parsing:
            return None
        raise UnknownName("command", cmd_name, COMMANDS, "hetrl --help")


# Plain help: typer's rich panels are narrower, slower, and worse in a pipe.
app = typer.Typer(cls=Commands, invoke_without_command=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Find which operator of an ONNX model runs on which processor of a phone.

    Exit codes: 0 done; 1 a valid request with a negative answer; 2 your mistake; 3 the device failed; 130 interrupted.
    """
    if version:
        typer.echo(f"hetrl {__version__}")
    elif ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code."""
    try:
        status = typer.main.get_command(app)(list(arguments), prog_name="hetrl", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("HETRL_DEBUG") == "1":
            raise
        return explain(error)
    return status if isinstance(status, int) else 0


def explain(error: Exception) -> int:
    """Print `error` as one line on stderr; the exit code that belongs to it."""
    if isinstance(error, HetrlError):
        message, code = str(error), error.exit_code
    elif hasattr(error, "format_message"):  # typer's own; which class it is differs between its versions
        message, code = usage_line(error), 2
    elif isinstance(error, OSError) and error.strerror:
        what = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        message, code = f"{what}{error.strerror[:1].lower()}{error.strerror[1:]}", 2
    else:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        message, code = f"internal error, {what}; please report it, with what HETRL_DEBUG=1 prints", INTERNAL
    complain(message)
    return code


def usage_line(error: Any) -> str:
    """A mistake in the command line itself, and the next thing to type."""
    context = getattr(error, "ctx", None)
    command = f"{context.command_path} --help" if context else "hetrl --help"
    option = getattr(error, "option_name", None)
    if option and context and hasattr(error, "possibilities"):
        known = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
        return str(UnknownName("option", option, [*known, "--help"], command))
    message = " ".join(error.format_message().rstrip(".").replace(". Did", "; did").split())
    hint = "" if message.endswith("?") else f"; `{command}` lists what it takes"
    return f"{message[:1].lower()}{message[1:]}{hint}"


def complain(message: str) -> None:
    """One line on stderr, whatever is in the message."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    print(f"error: {line}", file=sys.stderr)


def main() -> None:
    """Entry point of the console script."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is half done is cleared away, as after Ctrl-C
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
