"""An openpi command line, read as upstream's own parser reads it.

Hyphens and underscores are the same. A value follows its option or an equals sign. The last of several
counts. A flag takes no value; its opposite has `no-` before the last part of its name. An option of several
values takes all words up to the next option. Source: tyro 1.0 with openpi src/openpi/training/config.py
`cli`, commit 15a9616, tried by hand.
"""

from __future__ import annotations

import difflib
import shlex
from typing import Any, NamedTuple

from harness.errors import HarnessError
from harness.openpi import configs as openpi_configs
from harness.openpi.configs import LIST, REQUIRED, Config, Kind
from harness.openpi.trainer_line import Line, whose


class Command(NamedTuple):
    """A command of openpi's.

    `given` are the options as written. `effective` are all options, with the configuration's defaults. `line`
    is the line that they come from.
    """

    name: str
    config: Config
    given: dict[str, Any]
    effective: dict[str, Any]
    line: Line

    @property
    def environment(self) -> dict[str, str]:
        """The variables that the line sets."""
        return self.line.environment


def read(words: list[str]) -> Command:
    """The command in `words`: a configuration's name and its options, or a whole shell line.

    A shell line is for instance `NAME=value uv run scripts/train.py …`.

    Raises: HarnessError of `whose`, and "openpi-config-unknown", "openpi-option-unknown",
    "openpi-option-invalid", "options-contradict".
    """
    return read_line(whose(words))


def read_line(line: Line) -> Command:
    """The command in a line whose trainer is known. openpi's two trainers take the same options.

    Raises: HarnessError as `read`.
    """
    rest = line.arguments
    if not rest or rest[0].startswith("-"):
        raise HarnessError(
            "openpi-config-unknown",
            "the configuration's name comes first, its options after it",
            got=rest[0] if rest else "nothing",
            need=f"a configuration of openpi, such as pi05_libero or pi0_libero; {LIST} prints all of them",
            fix="harness import openpi pi05_libero --batch-size 8",
        )
    name, *tokens = rest
    config = openpi_configs.find(name)
    given = _options(tokens, name, config)
    effective = config.defaults | given
    for option in ("batch-size", "fsdp-devices"):
        if effective[option] < 1:
            need = "a count from 1"
            raise HarnessError(
                "openpi-option-invalid",
                f"--{option} does not take that value",
                got=effective[option],
                need=need,
                fix=f"--{option} {config.defaults[option]}",
            )
    if effective["resume"] and effective["overwrite"]:
        raise HarnessError(
            "options-contradict",
            "--resume goes on with a run and --overwrite deletes it: openpi refuses both together",
            got="--resume --overwrite"
            + (f" ({name} overwrites by default)" if "overwrite" not in given else ""),
            need="one of the two",
            fix=(
                "--no-overwrite"
                if "overwrite" not in given
                else "leave --overwrite out to go on, or --resume to start anew"
            ),
        )
    return Command(name, config, given, effective, line)


def _options(tokens: list[str], name: str, config: Config) -> dict[str, Any]:
    given: dict[str, Any] = {}
    waiting = list(tokens)
    while waiting:
        token = waiting.pop(0)
        if not token.startswith("--"):
            raise HarnessError(
                "openpi-option-invalid",
                f"{token!r} belongs to no option",
                got=token,
                need="--option value; a flag takes no value",
                fix="leave it out, or put its option before it",
            )
        written, equals, value = token[2:].partition("=")
        option, negated = _known(written.replace("_", "-"), name, config)
        kind = openpi_configs.kind_of(option)
        if kind.type == "bool":
            if equals:
                raise _invalid(token, option, kind)
            given[option] = not negated
            continue
        if kind.type in ("strings", "numbers"):
            values = [value] if equals else []
            while waiting and not _is_option(waiting[0]):
                values.append(waiting.pop(0))
            given[option] = [_value(each, option, kind) for each in values]
            continue
        if not equals:
            if not waiting or _is_option(waiting[0]):
                raise _invalid(token, option, kind)
            value = waiting.pop(0)
        given[option] = _value(value, option, kind)
    return given


def _is_option(word: str) -> bool:
    """True if a word is an option and no value: a letter follows its hyphens. `-5` and `-inf` are values."""
    name = word.partition("=")[0]
    begins = name.startswith("-") and name.lstrip("-")[:1].isalpha()
    return word == "--" or (begins and name[1:].lower() not in ("inf", "infinity", "nan"))


def _known(written: str, name: str, config: Config) -> tuple[str, bool]:
    """(the option, True if `written` is its negation)."""
    if written in config.defaults:
        return written, False
    parent, _, last = written.rpartition(".")
    positive = f"{parent}.{last.removeprefix('no-')}".strip(".")
    if (
        last.startswith("no-")
        and positive in config.defaults
        and openpi_configs.kind_of(positive).type == "bool"
    ):
        return positive, True
    if written in ("freeze-filter", "trainable-filter"):
        raise HarnessError(
            "openpi-option-unknown",
            "openpi's command line cannot say what is frozen: the filter is part of a configuration",
            got=f"--{written}",
            need="a configuration that has one, such as pi0_libero_low_mem_finetune",
            fix=(
                "harness import openpi pi0_libero_low_mem_finetune --model.pi05 …; or the recipe"
                " pi05_libero_lora"
            ),
        )
    close = difflib.get_close_matches(written, config.defaults, n=3, cutoff=0.5)
    # Most often the group is missing: --paligemma-variant for --model.paligemma-variant.
    close = [option for option in config.defaults if option.rpartition(".")[2] == last] + close
    close = list(dict.fromkeys(close))
    raise HarnessError(
        "openpi-option-unknown",
        f"openpi's {name} has no option --{written}",
        got=f"--{written}",
        need=" or ".join(f"--{option}" for option in close[:3])
        or "an option that `scripts/train.py NAME --help` lists",
        fix=f"--{close[0]}" if close else "leave it out",
    )


def _value(text: str, option: str, kind: Kind) -> Any:
    if kind.optional and text == "None":
        return None
    try:
        if kind.type == "int":
            return int(text)
        if kind.type == "float":
            return float(text)
        if kind.type == "numbers":
            return _number(text)
    except ValueError:
        raise _invalid(text, option, kind) from None
    if kind.type == "choice" and text not in kind.choices:
        raise _invalid(text, option, kind)
    return text


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _invalid(got: str, option: str, kind: Kind) -> HarnessError:
    if kind.type == "bool":
        parent, _, last = option.rpartition(".")
        opposite = f"{parent}.no-{last}".strip(".")
        return HarnessError(
            "openpi-option-invalid",
            f"--{option} is a flag and takes no value",
            got=got,
            need=f"--{option} or --{opposite}",
            fix=f"--{option}",
        )
    need = (
        ", ".join(kind.choices)
        if kind.choices
        else {"int": "a whole number", "float": "a number", "numbers": "numbers"}.get(kind.type, "a value")
    )
    need += ", or None" if kind.optional else ""
    of_lower = {choice.lower(): choice for choice in kind.choices}
    near = difflib.get_close_matches(got.lower(), of_lower, n=1, cutoff=0.3)
    value = (
        of_lower[near[0]] if near else {"int": "8", "float": "5e-5", "numbers": "0 1"}.get(kind.type, "VALUE")
    )
    return HarnessError(
        "openpi-option-invalid",
        f"--{option} does not take that value",
        got=got,
        need=need,
        fix=f"--{option} {value}",
    )


def is_required(value: Any) -> bool:
    """True if upstream refuses to start without this option."""
    return bool(value == REQUIRED)


def is_lacking(option: str, value: Any) -> bool:
    """True if upstream does not start with this value of the option, which its parser takes."""
    return is_required(value) or (option, value) in (("exp-name", ""), ("data.rlds-data-dir", None))


def said(name: str, options: dict[str, object]) -> str:
    """The command line of a configuration with these options."""
    words = [name]
    for option, value in options.items():
        if isinstance(value, bool):
            parent, _, last = option.rpartition(".")
            words.append(f"--{option}" if value else "--" + f"{parent}.no-{last}".strip("."))
        else:
            values = [str(each) for each in (value if isinstance(value, list) else [value])]
            joined = values[:1] and _is_option(values[0])
            words += [f"--{option}={values[0]}", *values[1:]] if joined else [f"--{option}", *values]
    return shlex.join(words)
