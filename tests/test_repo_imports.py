"""Tests who may import whom, who may import JAX, and who may print.

The tests read the source, so that nothing is imported.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.source import nodes, parsed

ROOT = Path(__file__).parents[1]
# What everybody may use, lowest first.
GROUND = frozenset(
    {"errors", "units", "received", "redact", "strict", "recipe", "image", "artifacts", "run", "download"}
)
ROOMS = {
    "probe",
    "calibrate",
    "data",
    "analyse",
    "choose",
    "evaluate",
    "report",
    "supervise",
    "doctor",
    "model",
    "checkpoint",
    "train",
    "plan",
    "openpi",
    "predict",
    "serve",
    "simulate",
    "flow",
    "verify",
    "replay",
    "launch",
    "profile",
}

# Room → the rooms beside the ground and itself that it may import. A second set: only inside functions.
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "probe": (set(), set()),
    # The parent of its stages knows no JAX; a stage is a process of its own, and computes inside functions.
    "calibrate": ({"plan", "probe", "serve", "supervise"}, {"train"}),
    "data": (set(), set()),
    "analyse": (set(), set()),
    "choose": (set(), set()),
    # The parent of the simulator's processes and of the server: it computes nothing itself.
    "evaluate": ({"choose", "simulate", "serve", "supervise"}, {"checkpoint", "data", "predict"}),
    "report": (set(), set()),
    "supervise": ({"probe"}, set()),
    "doctor": ({"probe"}, set()),
    "model": (set(), set()),
    "checkpoint": (set(), set()),
    "train": ({"data", "model", "checkpoint", "supervise"}, set()),
    "plan": (set(), {"train", "serve"}),
    "predict": ({"data", "checkpoint"}, {"model", "train"}),
    # The modules of NUMERIC compute; the server and what is around it know no JAX.
    "serve": ({"data", "checkpoint", "predict", "model", "train"}, set()),
    # It runs in the simulator's own Python, where of the harness only its errors can be imported.
    "simulate": (set(), set()),
    # Each process that starts or follows openpi reads what a trainer reads, and computes nothing.
    "openpi": ({"plan", "data", "analyse"}, {"train", "checkpoint", "supervise"}),
    # Tables and pictures of artifacts; two pictures need the names of what they draw.
    "show": ({"checkpoint", "plan"}, set()),
    # Nothing heavy at the top, so that `harness --help` loads nothing.
    "flow": (
        {"show"},
        {
            "analyse",
            "checkpoint",
            "choose",
            "data",
            "doctor",
            "openpi",
            "plan",
            "probe",
            "report",
            "supervise",
        },
    ),
    "verify": ({"flow"}, {"data", "supervise"}),
    # It reads a trace, and the text of the program that ran; only JAX has a reader of traces.
    "profile": ({"plan"}, set()),
    # Files for other programs; the run itself is started by them.
    "launch": ({"flow"}, set()),
    # On the host: another image does the work, so nothing of it is imported.
    "replay": (set(), set()),
    "verbs": ({"flow", "show"}, ROOMS),
    "cli": ({"verbs"}, set()),
    "__main__": ({"cli"}, set()),
}
# These start in well under a second and never hold a GPU: no JAX at the top of any of their modules, not even
# through a library.
NO_JAX = (GROUND | ROOMS | {"show", "verbs", "cli"}) - {"model", "checkpoint", "train"}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "chex"}
# The modules of a room without JAX that compute: they are imported inside functions.
NUMERIC = {
    f"serve.{name}"
    for name in (
        *("program", "vision", "attention", "kernels", "kernel_check"),
        *("shapes", "weights", "compiled", "rtc_program"),
    )
}
# The verbs print for people; the others run as a process of their own, and their answer to their parent is a
# line on stdout.
PRINTS = {"cli", "plan.compile", "plan.serving", "calibrate.stage"} | {
    f"verbs.{path.stem}" for path in (ROOT / "harness/verbs").glob("*.py")
}

MODULES = sorted((ROOT / "harness").rglob("*.py"))


def dotted(path: Path) -> str:
    """`harness/data/stats.py` → `data.stats`; a package's `__init__` is the package; harness itself is the
    empty name.
    """
    parts = path.relative_to(ROOT / "harness").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name: str) -> str:
    return name.partition(".")[0]


def imports(tree: ast.AST, package: list[str], *, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """(imported module, whether inside a function), relative imports resolved.

    `from harness import x` counts as harness.x.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "harness" else [module]
            yield from ((name, inside) for name in names)
        else:
            yield from imports(node, package, inside=inside or _is_put_off(node))


def _is_put_off(node: ast.AST) -> bool:
    """Whether what stands below is not executed when the module is imported."""
    only_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    return only_for_types or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def violations(name: str, source: ast.Module, *, is_package: bool = False) -> list[str]:
    """What the module `name` (without `harness.`) imports against the table."""
    package = ["harness", *name.split(".")] if is_package else ["harness", *name.split(".")[:-1]]
    here = room(name)
    found = []
    for module, inside in imports(source, package):
        top, _, rest = module.partition(".")
        if top == "harness" and rest:
            there = room(rest)
            anywhere, in_functions = (set(), set()) if here in GROUND else ALLOWED[here]
            if there not in GROUND | {here} | anywhere | (in_functions if inside else set()):
                found.append(f"{name} imports {module}" + ("" if inside else " at its top"))
        elif top in JAX and here in NO_JAX and name not in NUMERIC and (not inside or here in GROUND):
            found.append(f"{name} imports {module}" + ("" if inside else " at its top"))
    return found


def test_every_room_is_in_the_table() -> None:
    rooms = {room(dotted(path)) for path in MODULES} - {""}
    assert rooms <= GROUND | set(ALLOWED)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: dotted(path) or "harness")
def test_imports_follow_the_table(path: Path) -> None:
    name = dotted(path)
    if name:
        assert violations(name, parsed(path), is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("model.pi05", "from harness.train.state import State"),
        ("model.pi05", "def f():\n    import harness.train.state"),
        ("data.stats", "import jax.numpy as jnp"),
        ("data.stats", "from ..train import step"),
        ("errors", "def f():\n    import jax"),
        ("recipe.schema", "from harness import probe"),
        ("plan.choose", "from harness.train.step import train_step"),
        ("cli", "from harness.train import loop"),
        ("probe.nvml", "try:\n    import jax\nexcept ImportError:\n    pass"),
    ],
)
def test_the_check_sees_a_violation(name: str, source: str) -> None:
    assert len(violations(name, ast.parse(source))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("plan.compile", "def f():\n    import jax\n    from harness.train.step import train_step"),
        ("verbs.train", "def train():\n    from harness.train import loop"),
        ("train.loop", "import jax\nfrom harness.data.loader import Loader\nfrom . import step"),
        (
            "data.stats",
            "import numpy\nfrom harness.errors import HarnessError\nfrom .lerobot import open_dataset",
        ),
    ],
)
def test_the_check_lets_the_allowed_pass(name: str, source: str) -> None:
    assert violations(name, ast.parse(source)) == []


def test_nothing_before_train_loads_jax() -> None:
    """By importing for real: a library may import JAX where our own source does not."""
    modules = {dotted(path) for path in MODULES if room(dotted(path)) in NO_JAX} - {"", *NUMERIC}
    names = [f"harness.{name}" for name in sorted(modules)]
    code = (
        f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\n    assert 'jax'"
        " not in sys.modules, name"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if dotted(path) not in PRINTS],
    ids=lambda path: dotted(path) or "harness",
)
def test_only_the_command_line_prints(path: Path) -> None:
    calls = [node for node in nodes(path) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert [
        call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"
    ] == []


@pytest.mark.parametrize(
    "path",
    [*MODULES, *sorted((ROOT / "benchmarks").glob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))],
    ids=lambda path: ".".join(path.relative_to(ROOT).with_suffix("").parts),
)
def test_no_module_outgrows_a_reader(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350


@pytest.mark.parametrize("path", MODULES, ids=lambda path: dotted(path) or "harness")
def test_no_function_outgrows_a_reader(path: Path) -> None:
    lengths = [
        (node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [(name, length) for name, length in lengths if length > 60] == []
