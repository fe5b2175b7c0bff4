"""How a verb answers: an artifact as JSON or as a table on stdout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.received.text import all_visible, in_json
from harness.redact import redact_json


def answer(artifact: Any, as_json: bool, table: Callable[[Any], Any]) -> None:
    # A table folds long words, and a secret in two lines is found by nobody.
    text = redact_json(artifact.text())
    if as_json:
        print(in_json(type(artifact).model_validate_json(text).model_dump_json(indent=2)))
    else:
        from rich.console import Console

        # Its texts may be a stranger's: no table obeys one. Lines that hold a command are longer than the
        # console is wide.
        Console().print(
            table(type(artifact).model_validate_json(json.dumps(all_visible(json.loads(text))))), crop=False
        )


def print_line(artifact: Any) -> None:
    """Prints an artifact as one line of JSON, at once: whoever reads a pipe waits for it."""
    text = redact_json(artifact.text())
    print(in_json(type(artifact).model_validate_json(text).model_dump_json()), flush=True)


def keep_if_possible(run: Path, artifact: Any) -> None:
    """Writes the artifact into a run that was only to be looked at.

    Somebody else's run may lie where only he may write; the answer is printed all the same.
    """
    from harness.show.progress import Progress

    try:
        rundir(run).write(artifact)
    except HarnessError as error:
        Progress().warn(f"{artifact.FILE} was not written: {error.what}")


def with_dataset(sets: list[str] | None, dataset: str | None) -> list[str]:
    """All that a command line changes of a recipe: --set, and --dataset, which stands for the recipe's own.

    The revision is the new dataset's own, or none. What --set says of a key is the last word, because fixes
    say it so. Of a mixture nothing is left.
    """
    sets = sets or []
    if dataset is None:
        return sets
    # An address is no hub id; what stands before its "@" may be a password.
    name, _, revision = (
        dataset.partition("@") if not Path(dataset).exists() and "://" not in dataset else (dataset, "", "")
    )
    of_mixture = [each for each in sets if each.startswith("data.datasets")]
    rest = [each for each in sets if each not in of_mixture]
    return [*of_mixture, f"data.dataset={name}", f"data.revision={revision or 'null'}", *rest]


def rundir(path: Path) -> Any:
    from harness.run.directory import RunDir

    return RunDir(path)


def print_file(run: Any, kind: Any) -> None:
    """Prints the run's artifact as JSON on stdout, as it lies there.

    Raises: HarnessError as `RunDir.read`.
    """
    found = run.read(kind)
    if found is not None:
        print(in_json(found.model_dump_json(indent=2)))
