"""The training configurations that openpi ships, with every option of their command lines; writes
harness/openpi/configs.json.

    python -m benchmarks.openpi_configs --openpi CHECKOUT --python ENV/bin/python

ENV holds what openpi's training/config.py imports; where lerobot is not installed, an empty module stands in
for it. Without both options it says so, and nothing is done.
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


def described() -> dict[str, Any]:
    """Kinds of options, and of each configuration its model, whether it freezes, and its defaults; runs
    inside upstream's environment.
    """
    # As in openpi_compiled_child.py: each runs alone there, where the harness is not installed.
    try:
        import lerobot.common.datasets.lerobot_dataset  # noqa: F401
    except ImportError:
        for name in (
            "lerobot",
            "lerobot.common",
            "lerobot.common.datasets",
            "lerobot.common.datasets.lerobot_dataset",
        ):
            sys.modules[name] = types.ModuleType(name)
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
    import dataclasses

    hints = typing.get_type_hints(type(node), include_extras=True)
    for field in dataclasses.fields(node):
        hint, value = hints[field.name], getattr(node, field.name)
        if not field.init or "Suppress" in str(getattr(hint, "__metadata__", "")):
            continue
        path = f"{prefix}.{field.name}".strip(".")
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            walk(value, path, defaults, kinds)
            continue
        option = path.replace("_", "-")
        kind = kind_of(hint)
        # Two models have other choices of one option: the longer list, which holds the shorter.
        kinds[option] = max(kinds.get(option, kind), kind, key=lambda one: len(one.get("choices", [])))
        defaults[option] = (
            REQUIRED
            if "MISSING" in repr(value)
            else value
            if isinstance(value, str | int | float | None)
            else repr(value)
        )


def kind_of(hint: Any) -> dict[str, Any]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return kind_of(inner[0])
    if origin is typing.Literal:
        return {"type": "choice", "choices": list(inner)}
    if origin in (typing.Union, types.UnionType):
        return kind_of(next(one for one in inner if one is not type(None))) | {"optional": True}
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
