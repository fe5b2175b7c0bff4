"""The training configurations that openpi ships, with every option of their command lines; writes
harness/openpi/configs.json.

    python -m benchmarks.openpi_configs --openpi CHECKOUT --python ENV/bin/python

ENV holds what openpi's training/config.py imports; where torch, transformers or lerobot is not installed, an
empty module stands in for it. Without both options it says so, and nothing is done.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any

COMMIT = "15a9616"
TABLE = Path(__file__).parent.parent / "harness/openpi/configs.json"
REQUIRED = "<required>"
# Source: openpi src/openpi/models/pi0_config.py `__post_init__`, which refuses any other.
COMPILE_MODES = ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


def described() -> dict[str, Any]:
    """Kinds of options, and of each configuration its model, whether it freezes, and its defaults; runs
    inside upstream's environment.
    """
    from openpi_absent import stand_in

    stand_in()
    from flax import nnx
    from openpi.training import config as configs

    kinds: dict[str, Any] = {}
    found = {}
    for name, config in configs._CONFIGS_DICT.items():
        defaults: dict[str, Any] = {}
        walk(config, "", defaults, kinds)
        freezes = not isinstance(config.freeze_filter, nnx.Nothing)
        found[name] = {
            "family": config.model.model_type.value,
            "freezes": freezes,
            "data": type(config.data).__name__,
            "repack": repack_of(config.data),
            "defaults": defaults,
        }
    return {"kinds": kinds, "configs": found}


def repack_of(data: Any) -> dict[str, Any] | None:
    """The features that a reader takes, where its configuration says so and not its class."""
    inputs = getattr(getattr(data, "repack_transforms", None), "inputs", ())
    return next((each.structure for each in inputs if type(each).__name__ == "RepackTransform"), None)


def walk(node: Any, prefix: str, defaults: dict[str, Any], kinds: dict[str, Any]) -> None:
    """Adds the options of a configuration, as tyro makes them.

    The members of a tuple of dataclasses and of a dict have options of their own. A dict that is None by
    default has none, nor has a class.
    """
    import dataclasses
    import enum

    hints = typing.get_type_hints(type(node), include_extras=True)
    for field in dataclasses.fields(node):
        hint, value = hints[field.name], getattr(node, field.name)
        if not field.init or "Suppress" in str(getattr(hint, "__metadata__", "")):
            continue
        path = f"{prefix}.{field.name}".strip(".")
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            walk(value, path, defaults, kinds)
            continue
        if isinstance(value, tuple | list) and any(map(dataclasses.is_dataclass, value)):
            for number, each in enumerate(value):
                walk(each, f"{path}.{number}", defaults, kinds)
            continue
        for name, one in value.items() if isinstance(value, dict) else ():
            option = f"{path}.{name}".replace("_", "-")
            kinds[option], defaults[option] = {"type": "str" if isinstance(one, str) else "numbers"}, one
        option = path.replace("_", "-")
        kind = kind_of(hint)
        if field.name == "pytorch_compile_mode":
            kind |= {"type": "choice", "choices": COMPILE_MODES}
        if kind["type"] == "other":
            continue
        # Two models have other choices of one option: the longer list, which holds the shorter.
        kinds[option] = max(kinds.get(option, kind), kind, key=lambda one: len(one.get("choices", [])))
        defaults[option] = (
            REQUIRED
            if "MISSING" in repr(value)
            else value.name
            if isinstance(value, enum.Enum)
            else list(value)
            if kind["type"] == "strings"
            else value
        )


def kind_of(hint: Any) -> dict[str, Any]:
    import collections.abc
    import enum

    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return kind_of(inner[0])
    if origin is typing.Literal:
        return {"type": "choice", "choices": list(inner)}
    if origin in (typing.Union, types.UnionType):
        return kind_of(next(one for one in inner if one is not type(None))) | {"optional": True}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"type": "choice", "choices": [one.name for one in hint]}
    if origin is collections.abc.Sequence and inner == (str,):
        return {"type": "strings"}
    return {"type": hint.__name__ if hint in (int, float, str, bool) else "other"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--openpi", type=Path, help=f"a checkout of openpi at {COMMIT}")
    parser.add_argument("--python", type=Path, help="the python of its environment")
    options = parser.parse_args()
    if options.openpi is None or options.python is None:
        print(
            "skipped: needs --openpi CHECKOUT and --python ENV/bin/python (see the top of this file)",
            file=sys.stderr,
        )
        return
    head = subprocess.run(
        ["git", "-C", str(options.openpi), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if not head.startswith(COMMIT):
        raise SystemExit(
            f"{options.openpi} is at {head[:7] or 'no commit'}; the table is of {COMMIT}: git -C"
            f" {options.openpi} checkout {COMMIT}"
        )
    paths = [options.openpi / "src", options.openpi / "packages/openpi-client/src"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "JAX_PLATFORMS": "cpu"}
    child = [str(options.python), str(Path(__file__).resolve()), "--child"]
    table = json.loads(
        subprocess.run(child, env=environment, capture_output=True, text=True, check=True)
        .stdout.strip()
        .splitlines()[-1]
    )
    from harness.run.directory import write_atomic

    kinds = ",\n".join(f"    {json.dumps(name)}: {json.dumps(kind)}" for name, kind in table["kinds"].items())
    configs = ",\n".join(
        f"    {json.dumps(name)}: {json.dumps(config)}" for name, config in table["configs"].items()
    )
    write_atomic(
        TABLE,
        f'{{\n  "commit": "{COMMIT}",\n  "kinds": {{\n{kinds}\n  }},\n  "configs": {{\n{configs}\n  }}\n}}\n',
    )
    print(f"{len(table['configs'])} configurations, {len(table['kinds'])} options")


if __name__ == "__main__":
    if "--child" in sys.argv:
        print(json.dumps(described()))
    else:
        main()
