"""The command line: the verbs in the order in which a run meets them. Only `verbs` and this module print.

stdout carries the result that was asked for (with --json the artifact and nothing else). Logs, progress and
errors go to stderr.

Exit codes: 0 done and good; 1 done and the answer is no; 2 could not do it.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TextIO, cast

import typer
from typer.core import TyperGroup

from harness.errors import HarnessError
from harness.received import consent
from harness.received.denied import denied
from harness.received.text import visible
from harness.redact import Cleaned
from harness.run.ending import end_quickly
from harness.verbs.mistyped import Verb

# A verb is the module of its name, and in it the function of its name. `import` is a Python keyword, so its
# module is `imports`.
VERBS = (
    "probe",
    "calibrate",
    "plan",
    "data",
    "stats",
    "fetch",
    "doctor",
    "train",
    "launch",
    "status",
    "profile",
    "inspect",
    "analyse",
    "choose",
    "predict",
    "serve",
    "evaluate",
    "export",
    "report",
    "verify",
    "replay",
    "image",
    "import",
)


class Verbs(TyperGroup):
    """The verbs.

    Only the module of the verb that was typed is imported; --help and a mistyped verb import all.
    """

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        for name in (cmd_name,) if cmd_name in VERBS else VERBS:
            if name not in self.commands:
                self.add_command(_command(name), name)
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # `help` and `help VERB`, as other programs have it.
        if args[0] == "help":
            if not args[1:]:
                print(ctx.get_help())
                raise typer.Exit
            args = [args[1], "--help"]
        return super().resolve_command(ctx, args)


def _command(name: str) -> Any:
    if name == "import":
        return typer.main.get_command(import_module("harness.verbs.imports").app)
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    alone.command(name, cls=Verb)(getattr(import_module(f"harness.verbs.{name}"), name))
    return typer.main.get_command(alone)


app = typer.Typer(
    cls=Verbs,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Fine-tune pi0.5 on the GPU you have, reproducibly: probe, plan, data, stats, doctor, train, inspect,"
        " analyse, report, verify."
    ),
)


def _say_version(asked: bool) -> None:
    """Prints which harness this is, and ends."""
    if not asked:
        return
    from harness.run.revision import commit, version

    made = commit()
    print(f"harness {version()}" + ("" if made is None else f" (commit {made})"))
    raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show version and commit.")
]


@app.callback()
def _verbs(version: VersionOption = False) -> None:  # noqa: ARG001
    """Checks what every verb needs.

    Raises: HarnessError "directory-gone".
    """
    try:
        Path.cwd()
    except OSError as error:
        raise HarnessError(
            "directory-gone",
            "the directory that this shell is in is not there any more",
            got=error.strerror,
            need="a working directory",
            fix='cd "$HOME", or cd into the directory that has its name now: cd "$PWD"',
        ) from error


def main() -> None:
    """Runs the command line. A refusal is one screen on stderr and exit code 2.

    No secret leaves by stdout or stderr.
    """
    _open_streams()
    sys.stdout, sys.stderr = (
        cast(TextIO, Cleaned(_any_text(sys.stdout))),
        cast(TextIO, Cleaned(_any_text(sys.stderr), forgiving=True)),
    )
    consent.begin()
    end_quickly()
    try:
        try:
            app()
        finally:
            # Here a failure still has its message and its exit code.
            sys.stdout.flush()
    except HarnessError as error:
        _say(error)
        sys.exit(2)
    except Exception as error:
        refusal = denied(error)
        if refusal is not None:
            _say(refusal)
            sys.exit(2)
        # Python would write the traceback past the cleaned stream above. That stream lets our tables' colours
        # through; an exception's text may be a stranger's, so nothing of it may control the terminal.
        print(visible(traceback.format_exc()), file=sys.stderr)
        sys.exit(2)


def _say(error: HarnessError) -> None:
    """Prints a refusal on stderr."""
    parts = [("got", error.got), ("need", error.need), ("fix", error.fix)]
    lines = [
        f"error [{error.code}] {_part(error.what)}",
        *(f"  {name + ':':5} {_part(text)}" for name, text in parts if text),
    ]
    print("\n".join(lines), file=sys.stderr)


def _open_streams() -> None:
    """Opens the streams with which this process was started closed (`>&-`), for output that nobody wants.

    Otherwise the next file that is opened had their number, and what is said would be written into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is given, which is this one.
            os.open(os.devnull, os.O_RDWR)
    sys.stdin, sys.stdout, sys.stderr = (
        stream if stream is not None else os.fdopen(number, mode, closefd=False)
        for stream, number, mode in ((sys.stdin, 0, "r"), (sys.stdout, 1, "w"), (sys.stderr, 2, "w"))
    )


def _part(text: str) -> str:
    """One part of an error. Further lines are indented, so that none is taken for another part.

    A file's text may contain line breaks.
    """
    return visible(text).replace("\n", "\n        ")


def _any_text(stream: TextIO) -> TextIO:
    """The stream, which now writes an escape for what its encoding lacks (Chinese in Latin-1).

    Without that, such a character would end the verb.
    """
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


if __name__ == "__main__":
    main()
