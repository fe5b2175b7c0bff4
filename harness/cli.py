"""The command line: the verbs in the order in which a run meets them. Only `verbs` and this module print.

stdout carries what was asked for (with --json the artifact and nothing else); logs, progress and errors go to stderr.
Exit codes: 0 done and good; 1 done and the answer is no; 2 could not do it.
"""

from __future__ import annotations

import io
import sys
import traceback
from typing import TextIO, cast

import typer

from harness.errors import HarnessError
from harness.received import consent
from harness.received.text import visible
from harness.redact import Cleaned
from harness.verbs import analyse, data, doctor, export, fetch, imports, inspect, plan, predict, probe, report, stats, status, train, verify

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine-tune pi0.5 on the GPU you have, reproducibly: probe, plan, data, stats, doctor, train, inspect, analyse, report, verify.",
)

for verb in (
    probe.probe,
    plan.plan,
    data.data,
    stats.stats,
    fetch.fetch,
    doctor.doctor,
    train.train,
    status.status,
    inspect.inspect,
    analyse.analyse,
    predict.predict,
    export.export,
    report.report,
    verify.verify,
):
    app.command()(verb)
app.add_typer(imports.app, name="import")


def main() -> None:
    """Runs the command line; a refusal is one screen on stderr and exit code 2. No secret leaves by stdout or stderr."""
    sys.stdout, sys.stderr = cast(TextIO, Cleaned(_any_text(sys.stdout))), cast(TextIO, Cleaned(_any_text(sys.stderr)))
    consent.begin()
    try:
        app()
    except HarnessError as error:
        parts = [("got", error.got), ("need", error.need), ("fix", error.fix)]
        lines = [f"error [{error.code}] {_part(error.what)}", *(f"  {name + ':':5} {_part(text)}" for name, text in parts if text)]
        print("\n".join(lines), file=sys.stderr)
        sys.exit(2)
    except Exception:
        # Python would write it past the stream above.
        print(traceback.format_exc(), file=sys.stderr)
        sys.exit(2)


def _part(text: str) -> str:
    """One part of an error: what a file's text broke into lines is indented, so that it is not taken for another part."""
    return visible(text).replace("\n", "\n        ")


def _any_text(stream: TextIO) -> TextIO:
    """The stream, which writes as an escape what its encoding lacks (Chinese in Latin-1), instead of ending the verb."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


if __name__ == "__main__":
    main()
