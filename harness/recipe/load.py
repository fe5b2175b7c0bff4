"""Loads recipes from files and from the package, and applies --set."""

from __future__ import annotations

import copy
import functools
import os
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml

from harness.errors import HarnessError
from harness.received import consent
from harness.received.denied import denied
from harness.received.files import RECIPE_BYTES, read_received, there
from harness.received.litter import named
from harness.received.text import one_line, word
from harness.received.yaml import parse_yaml
from harness.recipe.episodes import with_files_read
from harness.recipe.norm_stats import location_of_statistics
from harness.recipe.schema import PALIGEMMA, Recipe
from harness.strict import parse

# The recipe that a fix names where no name is near.
DEFAULT = "pi05_libero"
_AT_HOME = (("weights", "source"), ("data", "tokenizer"))
_QUOTES = ("'", '"')
_NULL = ("", "~", "null", "Null", "NULL")


def shipped_recipes() -> list[str]:
    """Names of the recipes inside the package."""
    files = named(resources.files("harness.recipe").iterdir(), ".yaml")
    return [file.name.removesuffix(".yaml") for file in files]


def load_recipe(name_or_file: str, overrides: list[str] | None = None, *, root: Path | None = None) -> Recipe:
    """The recipe `name_or_file` (a shipped name or a YAML file), with `key.path=value` overrides applied.

    If the user asks for the recipe, its sources may be fetched (`harness.received.consent`), and its file may
    be a link. `root` is the run to which the file belongs. Anybody may have written such a file: no link
    leads out of the run, and only the overrides' sources may be fetched.
    Raises: HarnessError "recipe-unknown", "recipe-invalid" or "override-invalid"; UnsafeFile.
    """
    data = _read_yaml(name_or_file, root)
    # A received recipe has the numbers of its episodes in it, and names no file of this machine.
    data = data if root is not None else _from_home(with_files_read(data))
    recipe = recipe_from(data, overrides, where=f"recipe {name_or_file}")
    if root is None:
        # http:// is for servers on this machine (download.web). A file may come from anyone, and they may not
        # have this machine's services asked.
        consent.grant(*(each for _, each in _sources(recipe) if not (each or "").startswith("http://")))
    return recipe


@functools.cache
def recipe_to_look_at(name: str) -> Recipe:
    """A shipped recipe that nobody has asked for, such as that of a measured step: nothing may be fetched."""
    folder = Path(str(resources.files("harness.recipe")))
    return load_recipe(str(folder / f"{name}.yaml"), root=folder)


def recipe_from(data: dict[str, Any], overrides: list[str] | None = None, *, where: str) -> Recipe:
    """The recipe in a mapping, such as one recorded in a checkpoint, with overrides applied.

    The overrides' sources may be fetched.

    Raises: HarnessError "recipe-invalid" or "override-invalid".
    """
    # A copy, because the caller's mapping may be a manifest's.
    data = copy.deepcopy(data)
    for override in overrides or []:
        _apply_override(data, override)
    recipe = parse(
        Recipe,
        data,
        where=where,
        code="recipe-invalid",
        fix="correct the keys named above in the recipe or in --set",
    )
    typed = {override.partition("=")[0] for override in overrides or []}
    consent.grant(
        *(
            source
            for key, source in _sources(recipe)
            if any(key == each or key.startswith(f"{each}.") for each in typed)
        )
    )
    return recipe


def to_yaml(recipe: Recipe) -> str:
    """The text of a file from which `load_recipe` reads the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(name_or_file: str, root: Path | None) -> dict[str, Any]:
    path = Path(name_or_file)
    if root is None and name_or_file in shipped_recipes():
        text = resources.files("harness.recipe").joinpath(f"{name_or_file}.yaml").read_text(encoding="utf-8")
    elif _is_there(path):
        try:
            text = read_received(path, root or path.resolve().parent, RECIPE_BYTES).decode()
        except (OSError, RuntimeError, ValueError) as error:
            utf8 = isinstance(error, UnicodeDecodeError)
            raise denied(error) or HarnessError(
                "recipe-invalid",
                f"recipe {name_or_file} cannot be read: {error}",
                need="a YAML file, in UTF-8" if utf8 else "a YAML file",
                fix="save the file in the encoding UTF-8" if utf8 else "--recipe FILE.yaml",
            ) from error
    else:
        raise _unknown(name_or_file, path)
    try:
        data = parse_yaml(text)
    except ValueError as error:
        raise HarnessError(
            "recipe-invalid",
            f"recipe {name_or_file} cannot be read as YAML: {error}",
            fix="correct the file",
        ) from error
    if not isinstance(data, dict):
        raise HarnessError(
            "recipe-invalid",
            f"recipe {name_or_file} is not a mapping of keys",
            got="nothing" if data is None else type(data).__name__,
            need="keys such as those of recipe.yaml in a run's directory",
            fix="correct the file",
        )
    return data


def _unknown(name: str, path: Path) -> HarnessError:
    """The error for a name that is no shipped recipe's and no file's."""
    import difflib

    is_path = name != path.name or path.suffix in (".yaml", ".yml")
    here = [str(path.parent / each) for each in os.listdir(path.parent)] if path.parent.is_dir() else []
    files = [each for each in here if each.endswith((".yaml", ".yml"))]
    # A run has one, its own.
    inside = [str(each) for each in path.glob("*.yaml")]
    known = files if is_path else shipped_recipes()
    near = difflib.get_close_matches(str(path), known, n=1, cutoff=0.7 if is_path else 0.4)
    near = inside if len(inside) == 1 else near
    fix = f"--recipe {word(near[0])}" if near else f"--recipe {DEFAULT}"
    return HarnessError(
        "recipe-unknown",
        f"there is no recipe {name!r}",
        got="a directory" if path.is_dir() else name,
        need=f"one of {', '.join(shipped_recipes())}, or a YAML file",
        fix=f"correct the path: ls {word(path.parent)} lists what is there" if is_path and not near else fix,
    )


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise HarnessError(
            "override-invalid",
            f"--set {override!r} is not key=value",
            need="for example train.steps=100",
            fix=f"--set {word(f'{key}=VALUE')}" if key and not equals else "--set train.steps=100",
        )
    *parents, last = key.split(".")
    node: Any = data
    for part in parents:
        if isinstance(node, list):
            node = _at(node, part, override)
            continue
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict | list):
            raise HarnessError(
                "override-invalid",
                f"--set {override!r}: {part!r} holds a value, not keys",
                fix="check the key path in the recipe",
            )
    path = (*parents, last)
    found = _from_home(with_files_read(_value(value, path), path), path)
    if isinstance(node, list):
        _at(node, last, override)
        node[int(last)] = found
        return
    if key == "data.dataset" and node.get("datasets"):
        _take_one(node, found)
    elif key == "data.datasets" and found is not None:
        for of_one in ("dataset", "revision", "episodes"):
            node.pop(of_one, None)
    node[last] = found


def _at(node: list[Any], position: str, override: str) -> Any:
    """The entry of a list at the number `position`."""
    if not position.isdecimal() or int(position) >= len(node):
        raise HarnessError(
            "override-invalid",
            f"--set {override!r}: {position!r} is no position in a list of {len(node)}",
            need=f"0 to {len(node) - 1}" if node else "a list that has entries",
            fix="check the key path in the recipe",
        )
    return node[int(position)]


def _take_one(data: dict[str, Any], dataset: Any) -> None:
    """Makes a recipe of a mixture one of a single dataset.

    If it is one of the mixture, the recipe keeps what is said of it there.
    """
    for each in data.pop("datasets"):
        if isinstance(each, dict) and each.get("dataset") == dataset:
            data.update({name: value for name, value in each.items() if name != "weight"})


def _from_home(value: Any, path: tuple[str, ...] = ()) -> Any:
    """`value`, a recipe's part at the key `path`, where `~/` before weights or a tokenizer is the home.

    No shell puts it in: it stands in a file, or behind a "=". A dataset's name is looked up where it is read.
    """
    if isinstance(value, dict):
        return {key: _from_home(inner, (*path, str(key))) for key, inner in value.items()}
    at_home = path in _AT_HOME and isinstance(value, str) and value.startswith("~/")
    return os.path.expanduser(value) if at_home else value


def _value(text: str, path: tuple[str, ...]) -> Any:
    """The value that --set gives a key. Where the key holds text, that is the text as it was typed.

    YAML would take a number, a date or a mapping for another value, and drop what stands behind "#".
    """
    if not _holds_text(path) or text.strip() in _NULL or text.lstrip()[:1] in _QUOTES:
        return _scalar(text)
    return text.strip()


def _holds_text(path: tuple[str, ...]) -> bool:
    """True for a key of the recipe that holds text, or text or null, and nothing else."""
    kind: Any = Recipe
    for part in path:
        members = _members(kind)
        models = [each for each in members if isinstance(each, type) and hasattr(each, "model_fields")]
        lists = [each for each in members if get_origin(each) is list]
        field = next((each.model_fields[part] for each in models if part in each.model_fields), None)
        if field is None and not lists:
            return False
        kind = field.annotation if field is not None else get_args(lists[0])[0]
    return set(_members(kind)) - {type(None)} == {str}


def _members(kind: Any) -> tuple[Any, ...]:
    """The types of a union; of any other type, itself."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _scalar(text: str) -> Any:
    """The value that YAML reads in `text`.

    Numbers such as "5e-5", an exponent without a dot, are numbers too; YAML 1.1 reads them as strings.
    """
    try:
        value = parse_yaml(text)
    except ValueError as error:
        what, need = (
            f"--set: {one_line(text[:200])} is not a YAML value",
            "for example 100 or {rank: 16, alpha: 16.0}",
        )
        raise HarnessError("override-invalid", what, got=error, need=need, fix="correct the value") from error
    if isinstance(value, str) and text.lstrip()[:1] not in _QUOTES:
        try:
            return float(value)
        except ValueError:
            return value
    return value


def shipped_sources() -> set[str]:
    """Every address and hub id that the package's recipes name."""
    return {
        source
        for name in shipped_recipes()
        for _, source in _sources(recipe_from(_read_yaml(name, None), where=name))
        if source is not None
    }


def _sources(recipe: Recipe) -> list[tuple[str, str | None]]:
    """Key and source of everything that is fetched if it is not on this machine."""
    statistics = location_of_statistics(recipe)
    datasets = [(f"{part.key}.dataset", part.dataset.partition("@")[0]) for part in recipe.data.parts()]
    return [
        ("weights.source", recipe.weights.source),
        *((key, name if name != "sample" else None) for key, name in datasets),
        ("data.tokenizer", PALIGEMMA if recipe.data.tokenizer == "paligemma" else None),
        ("data.norm_stats", statistics if statistics is not None and "://" in statistics else None),
    ]


def _is_there(path: Path) -> bool:
    """True if the name exists and is not a directory.

    A name that no file can have, such as one with NUL, does not exist.
    """
    try:
        return there(path) and not path.is_dir()
    except ValueError:
        return False
