"""What was probably meant by what no verb takes: a word without its option, or a key as an option."""

from __future__ import annotations

import ast
import difflib
import os
import re
from errno import EACCES
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from harness.received.denied import denied
from harness.received.text import word

# The part of typer that every wrong command line raises; it has no public name.
_Usage: Any = typer.BadParameter.__mro__[1]
# What typer says, without a fix, of a path that this user may not read.
_NOT_READABLE = re.compile(r"[Pp]ath (['\"].+['\"]) is not readable\.", re.DOTALL)
# The options whose word is often typed without them.
_SUBJECTS = ("--run", "--dataset", "--recipe", "--set")


class Verb(TyperCommand):
    """A verb that says what was probably meant by what it does not take."""

    # Words that belong to nothing are refused below, with the option that takes them.
    allow_extra_args = True

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            extra = super().parse_args(ctx, args)
        except _Usage as error:
            shut = _NOT_READABLE.fullmatch(str(getattr(error, "message", "")))
            if shut is not None:
                path = ast.literal_eval(shut[1])
                raise (denied(PermissionError(EACCES, os.strerror(EACCES), path)) or error) from error
            if isinstance(getattr(error, "option_name", None), str):
                error.possibilities = [*_keys(self._options, error.option_name), *(error.possibilities or [])]
            raise
        if extra and not ctx.resilient_parsing:
            said = f"Got unexpected extra argument(s) ({' '.join(extra)})"
            ctx.fail(f"{said}.{_hint(extra[0], self._options)}")
        return extra

    @property
    def _options(self) -> set[str]:
        return {name for parameter in self.params for name in parameter.opts}


def _hint(typed: str, options: set[str]) -> str:
    """The option that takes the word `typed`, if it is plain which."""
    for option in _SUBJECTS:
        if option in options and _belongs(typed, option):
            return f" Did you mean {option} {word(typed)}?"
    return ""


def _belongs(text: str, option: str) -> bool:
    """Whether `text` is what `option` takes."""
    from harness.recipe.load import shipped_recipes
    from harness.run.directory import MANIFEST, RECIPE

    path = Path(text)
    if option == "--recipe":
        return text in shipped_recipes() or path.suffix in (".yaml", ".yml")
    if option == "--set":
        return "=" in text and not path.exists()
    if option == "--dataset":
        return (path / "meta").is_dir()
    return path.is_dir() and any((path / name).exists() for name in (RECIPE, MANIFEST))


def _keys(options: set[str], typed: str) -> list[str]:
    """`--set` with the keys of the recipe whose last part is `typed`, for a verb that takes it."""
    if "--set" not in options:
        return []
    from harness.recipe.schema import Recipe
    from harness.strict import leaves

    name = typed.lstrip("-").replace("-", "_")
    keys = list(leaves(Recipe))
    near = difflib.get_close_matches(name, {key.rpartition(".")[2] for key in keys}, n=1, cutoff=0.8)
    return [f"--set {key}=…" for key in keys if key.rpartition(".")[2] in near][:3]
