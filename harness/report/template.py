"""Opens a page's template, with the filters that every page has."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from harness.received.text import visible
from harness.units import format_bytes, format_seconds


def _shown(value: Any) -> Any:
    """A text as `visible` gives it, so that none turns the line around that it stands in. Markup stays."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


@cache
def template(name: str, **filters: Callable[[Any], Any]) -> jinja2.Template:
    """The template `name` of this package, with `filters` of its own beside `bytes` and `seconds`.

    What it shows is escaped, control characters and writing directions too, and a value that it lacks is an
    error. It is compiled once in a process, which takes longer than to draw a page from it.
    """
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": format_bytes, "seconds": format_seconds, **filters}
    return environment.get_template(name)
