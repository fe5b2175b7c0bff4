"""Hostile values that a stranger may write where a text, a number or a place is expected.

Part of `benchmarks.strangers`.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any, NamedTuple

# What a JSON encoder would not write is put into its text afterwards.
_RAW = re.compile(r'"@@RAW:(.*?)@@"')
_CONTROLS = [
    "\x1b]0;owned\x07",
    "\x1b[2J\x1b[H",
    "\x1b]52;c;AAAA\x07",
    "\x9b31m",
    "\x00",
    "\r",
    "\x08\x08",
    "\u202eabc",
    "\u2066",
    "\ufeff",
    "\u2028",
    "\x7f",
]
_MARKUP = [
    "[/x]",
    "[green]equal[/green]",
    "[link=file:///etc/passwd]x[/link]",
    "[bold",
    "\\[",
    "<script>alert(1)</script>",
    "{{7*7}}",
    "{% raw %}",
    "%s%n",
]
_NAMES = [
    "",
    ".",
    "..",
    "../..",
    "/",
    "~",
    "~/x",
    "-rf",
    "--help",
    " ",
    "a\\b",
    "a/../../b",
    "lock",
    "part",
    "source.json",
    "a" * 300,
    "con\n",
    "a\tb",
    "x/",
    "//x",
]
NUMBERS: list[Any] = [
    0,
    -1,
    1,
    2**31,
    2**53,
    2**53 + 1,
    2**63,
    -(2**63),
    10**30,
    1e308,
    -0.0,
    1e-320,
    float("nan"),
    float("inf"),
    -float("inf"),
    0.5,
]
RAW_NUMBERS = [
    "1e400",
    "-1e400",
    "1e-400",
    "0" * 40 + "1",
    "1" * 5000,
    "1_000",
    "0x10",
    "+1",
    ".5",
    "NaN",
    "nul",
    "True",
]
DATES = ["2001-99-99", "2001-01-01", "12:30:45", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59+99:99"]
ATOMS = [*'a 1=:[{"\\-\té/', "1,", "loss=", "step ", "Step 1: ", "a ", "0.", "1e", "%|", "[1:00<", "a=1 "]


class Hostile(NamedTuple):
    """The places that a stranger would like to be opened here. `trap` counts who connects."""

    secrets: tuple[str, ...]
    places: tuple[str, ...]
    trap: str

    def text(self, rng: random.Random) -> str:
        kind = rng.randrange(6)
        if kind == 0:
            return rng.choice(_CONTROLS)
        if kind == 1:
            return rng.choice(_MARKUP)
        if kind == 2:
            return rng.choice(_NAMES)
        if kind == 3:
            return self.address(rng)
        return (
            rng.choice(_CONTROLS) + rng.choice(["x", "loss", "task"]) + rng.choice([*_CONTROLS, *_MARKUP])
            if kind == 4
            else rng.choice(DATES)
        )

    def address(self, rng: random.Random) -> str:
        """A place that no received file may have opened: a secret, a device, a directory of the user's, an
        address.
        """
        remote = [
            f"{self.trap}/ckpt/..",
            f"{self.trap}/internal/admin",
            f"{self.trap}/ckpt/params",
            "gs://bucket/..",
            "gs://bucket/ckpt",
            "https://10.0.0.1/x",
        ]
        local = [
            "/etc/passwd",
            "/dev/zero",
            "/proc/self/environ",
            "~",
            "/",
            *self.secrets,
            *self.places,
            *(f"file://{path}" for path in self.secrets),
        ]
        return rng.choice(remote if rng.random() < 0.5 else local)

    def value(self, rng: random.Random) -> Any:
        kind = rng.randrange(10)
        if kind < 3:
            return self.text(rng)
        if kind < 6:
            return rng.choice(NUMBERS)
        if kind == 6:
            return f"@@RAW:{rng.choice(RAW_NUMBERS)}@@"
        if kind == 7:
            return rng.choice(
                [
                    None,
                    True,
                    False,
                    [],
                    {},
                    [[]],
                    {"": None},
                    [None] * 3,
                    {"source": self.address(rng)},
                    "\ud800",
                    "x\udfff",
                ]
            )
        if kind == 8:
            return rng.choice(
                [
                    _deep("["),
                    _deep('{"a":'),
                    ["x"] * 20_000,
                    "A" * 1_000_000,
                    list(range(1000)),
                    {str(i): i for i in range(3000)},
                ]
            )
        return self.address(rng)


def _deep(opening: str) -> str:
    levels = 100_000
    closing = {"[": "]", '{"a":': "}"}[opening]
    return f"@@RAW:{opening * levels}1{closing * levels}@@".replace('"', "'")


def dumps(value: Any) -> str:
    """JSON text, with what only a hostile writer writes: NaN, 1e400, 100,000 levels."""
    return _RAW.sub(lambda match: match[1].replace("'", '"'), json.dumps(value))
