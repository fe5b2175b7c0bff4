"""The pydantic base of every recipe and artifact. Unknown keys are refused, with the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from harness.errors import HarnessError

T = TypeVar("T", bound="Strict")

# A longer list, or more of a longer key, would not help anyone.
_MOST_LISTED = 100
_LONGEST_KEY = 200
_DEEPEST = 6
_LONGEST_WORD = 40
_MOST_WRITTEN = 10**40


class Strict(BaseModel):
    """A pydantic model that forbids unknown keys and does not coerce silently."""

    # Built at first use: a verb imports the schema of every file and reads two or three of them.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), defer_build=True)


class Later(Strict):
    """A model with keys that earlier versions did not have, which `LATER` names.

    At its default such a key is left out of every written form, so that the bytes and the hash of what was
    written before stay what they were.
    """

    LATER: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        left_out = {name for name in self.LATER if getattr(self, name) == fields[name].default}
        return {name: value for name, value in written.items() if name not in left_out}


def parse(model: type[T], data: Any, *, where: str, code: str, fix: str) -> T:
    """`data` validated as `model`.

    Raises: HarnessError(code) that lists every offending key (for more than a hundred, their number), with
    the nearest known name for unknown ones.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise HarnessError(
            code, f"{where} is not valid: " + "; ".join(_lines(model, error)), fix=fix
        ) from error


def _lines(model: type[BaseModel], error: ValidationError) -> list[str]:
    """The faults, key by key. If nearly everything is wrong, their number."""
    if error.error_count() > _MOST_LISTED:
        return [f"{error.error_count():,} keys are unknown, missing or of another form"]
    return [_explain(model, item) for item in error.errors(include_url=False)]


def _got(item: Any) -> str:
    """The value that was given, where it is a number or a short word and the message does not hold it."""
    value = item["input"]
    said = item["type"] in ("value_error", "missing") or not isinstance(value, int | float | str)
    # A word may hold a password, and a long one helps nobody.
    if said or (isinstance(value, str) and (len(value) > _LONGEST_WORD or not value.isidentifier())):
        return ""
    # Of an integer with thousands of digits Python writes none.
    return "" if isinstance(value, int) and abs(value) >= _MOST_WRITTEN else f" (given: {value!r})"


def _explain(model: type[BaseModel], item: Any) -> str:
    path = ".".join(str(part)[:_LONGEST_KEY] for part in item["loc"])
    if item["type"] == "string_type":
        return f"{path}: {item['msg']}; a number or date that is meant as text stands in quotes"
    if item["type"] != "extra_forbidden":
        return f"{path}: {item['msg']}{_got(item)}" if path else str(item["msg"])
    known = _known_keys(model, item["loc"][:-1])
    nearest = difflib.get_close_matches(str(item["loc"][-1])[:_LONGEST_KEY], known, n=1, cutoff=0.5)
    if not nearest:
        # The key as a whole, for one that was named by its last part.
        nearest = [key for key in leaves(model) if key.rpartition(".")[2] == item["loc"][-1]][:3]
    hint = (
        f"did you mean {' or '.join(map(repr, nearest))}?"
        if nearest
        else f"known keys: {', '.join(sorted(known))}"
    )
    return f"unknown key {path!r}: {hint}"


def leaves(model: Any, path: str = "") -> Iterator[str]:
    """The paths of all values of a model that are no models themselves."""
    # A model that holds one of its own kind has no last value.
    if path.count(".") > _DEEPEST:
        return
    for name, field in model.model_fields.items():
        inner = model_in(field.annotation)
        if inner is None:
            yield f"{path}{name}"
        else:
            yield from leaves(inner, f"{path}{name}.")


def _known_keys(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The field names of the model to which `path` leads."""
    current: Any = model
    for part in path:
        if not isinstance(part, str) or part not in getattr(current, "model_fields", {}):
            continue
        current = model_in(current.model_fields[part].annotation)
    return list(getattr(current, "model_fields", {}))


def model_in(annotation: Any) -> Any:
    """The first pydantic model inside an annotation such as `X | None` or `list[X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = model_in(argument)
        if found is not None:
            return found
    return None
