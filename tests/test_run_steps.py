"""Tests the one definition of a run's steps, in `harness.run.steps`.

Covered are its names and parts. Status, inspect, --resume and the supervisor must agree with it, and the
source may contain no second definition.
"""

from __future__ import annotations

import ast
import os
import random
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from harness.artifacts import Upstream
from harness.artifacts.plan import Backend
from harness.checkpoint.inspect import inspect
from harness.checkpoint.locate import locate
from harness.checkpoint.scan import find
from harness.checkpoint.steps import read_steps
from harness.checkpoint.store import Store
from harness.errors import HarnessError
from harness.recipe.load import load_recipe, to_yaml
from harness.run.directory import RunDir
from harness.run.status import read_status
from harness.run.steps import (
    ASSETS,
    COMMIT,
    DIGESTS,
    HARNESS,
    INTERRUPTED,
    METADATA,
    OCDBT_MANIFEST,
    PARAMS,
    RECORD,
    TRAIN_STATE,
    interrupted_saves,
    interrupted_step,
    is_whole,
    missing,
    newest_step,
    resumes_after,
    step_directories,
    step_number,
    steps_taken,
    whole_steps,
)
from tests.support.item_writer import write_step
from tests.support.report_run import manifest
from tests.support.step_writer import put_step

ROOT = Path(__file__).parent.parent
BACKENDS: tuple[Backend, ...] = ("ours", "openpi")
# What a finished save of ours has, in the words of the disk and not of the module.
OURS = [
    "_CHECKPOINT_METADATA",
    "harness/record.json",
    "params/_METADATA",
    "params/manifest.ocdbt",
    "train_state/_METADATA",
    "train_state/manifest.ocdbt",
]


# --- names and parts


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("0", 0),
        ("7", 7),
        ("07", 7),
        ("000000000000", 0),
        (str(2**53 - 1), 2**53 - 1),
        (str(2**53), None),
        ("9" * 20, None),
        ("9" * 5000, None),
        ("-1", None),
        ("+1", None),
        ("1e3", None),
        ("1_000", None),
        ("1.0", None),
        (" 1", None),
        ("1\n", None),
        ("", None),
        ("９", None),
        ("٣", None),
        ("²", None),
        ("last", None),
        ("7.orbax-checkpoint-tmp-0", None),
    ],
)
def test_a_name_is_a_step_when_it_is_a_plain_number(name: str, step: int | None) -> None:
    assert step_number(name) == step


def test_what_is_whole_is_what_was_whole_before(tmp_path: Path) -> None:
    whole = put_step(tmp_path, 7)
    assert sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()) == sorted(OURS)
    assert is_whole(whole)
    assert missing(whole) == []


@pytest.mark.parametrize("part", OURS)
@pytest.mark.parametrize("spoil", ["gone", "a directory", "a link to nowhere"])
def test_a_step_without_one_of_its_parts_is_not_whole(tmp_path: Path, part: str, spoil: str) -> None:
    step = put_step(tmp_path, 7)
    (step / part).unlink()
    if spoil == "a directory":
        (step / part).mkdir()
    elif spoil == "a link to nowhere":
        (step / part).symlink_to("nowhere")
    assert missing(step) == [part]
    assert (whole_steps(tmp_path), newest_step(tmp_path), resumes_after(tmp_path)) == ([], None, 0)
    # openpi writes no file of ours, and may keep its arrays in another way.
    assert whole_steps(tmp_path, "openpi") == ([] if part == COMMIT else [7])


@pytest.mark.parametrize("name", ["07", "-1", "1e3", "９", str(2**53), "7.orbax-checkpoint-tmp-0", "last"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_run_resumes_from_another_name(tmp_path: Path, name: str, backend: Backend) -> None:
    put_step(tmp_path, name)
    assert whole_steps(tmp_path, backend) == []
    put_step(tmp_path, 3)
    assert newest_step(tmp_path, backend) == 3


def test_links_and_files_are_no_steps(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    put_step(checkpoints, 3)
    put_step(tmp_path / "other", 9)
    (checkpoints / "9").symlink_to(tmp_path / "other" / "9")
    (checkpoints / "8").symlink_to("8")
    (checkpoints / "10").write_text("")
    assert step_directories(checkpoints) == [(3, checkpoints / "3")]
    assert whole_steps(checkpoints) == [3]
    # openpi's Orbax follows a link to a directory, and begins where that ends.
    assert whole_steps(checkpoints, "openpi") == [3, 9]


def test_orbax_takes_the_steps_that_openpi_is_said_to_resume_from(tmp_path: Path) -> None:
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=None, create=True)
    with ocp.CheckpointManager(tmp_path / "c", options=options) as manager:
        for step in (1, 2):
            manager.save(step, args=ocp.args.StandardSave({"a": np.ones(3)}))
    for name in ("07", "９", "-3", "2.orbax-checkpoint-tmp-1"):
        shutil.copytree(tmp_path / "c" / "2", tmp_path / "c" / name)
    (tmp_path / "c" / "8").symlink_to("2")
    (tmp_path / "c" / "12").write_text("")
    with ocp.CheckpointManager(tmp_path / "c", options=options) as manager:
        assert sorted(manager.all_steps()) == whole_steps(tmp_path / "c", "openpi") == [1, 2, 8]


def test_steps_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        put_step(tmp_path, step)
    assert whole_steps(tmp_path) == [9, 20, 100]
    assert (newest_step(tmp_path), resumes_after(tmp_path)) == (100, 100)
    assert whole_steps(tmp_path / "not there") == []


def test_openpi_counts_from_zero(tmp_path: Path) -> None:
    put_step(tmp_path, 0, backend="openpi")
    assert (newest_step(tmp_path, "openpi"), steps_taken(0, "openpi")) == (0, 1)
    # Upstream does not resume from it when it is alone.
    assert resumes_after(tmp_path, "openpi") == 0
    put_step(tmp_path, 19, backend="openpi")
    assert resumes_after(tmp_path, "openpi") == 20
    assert (whole_steps(tmp_path), steps_taken(19)) == ([], 19)


def test_interrupted_saves(tmp_path: Path) -> None:
    put_step(tmp_path, 3)
    names = ["12.orbax-checkpoint-tmp-0", "4.orbax-checkpoint-tmp-deleted-1", "x.orbax-checkpoint-tmp"]
    for name in names:
        (tmp_path / name).mkdir()
    assert [path.name for path in interrupted_saves(tmp_path)] == names
    assert [interrupted_step(name) for name in names] == [12, 4, None]
    assert interrupted_saves(tmp_path / "not there") == []


# --- everybody says the same


def run_of(path: Path, backend: Backend) -> RunDir:
    run = RunDir(path)
    upstream = Upstream(commit="c", pinned="c") if backend == "openpi" else None
    run.checkpoints.mkdir(parents=True)
    run.write(manifest(upstream=upstream))
    (path / "recipe.yaml").write_text(to_yaml(load_recipe("smoke")))
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole step with arrays, which the others are copies of."""
    step = tmp_path_factory.mktemp("steps") / "1"
    write_step(step, {"action_in_proj/bias": np.ones(2, np.float32)}, ["action_in_proj/bias"])
    (step / HARNESS).mkdir()
    (step / RECORD).write_text("{}")
    (step / DIGESTS).write_text("{}")
    assert missing(step) == []
    return step


def lose(step: Path, part: str) -> None:
    place = step / part
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def litter(checkpoints: Path, whole: Path, seed: int) -> None:
    """Steps of random names, of which random parts are missing."""
    chance = random.Random(seed)
    parts = [*OURS, PARAMS, TRAIN_STATE, HARNESS, DIGESTS]
    for number in chance.sample(range(1, 60), 6):
        name = chance.choice(
            [f"{number}"] * 6 + [f"0{number}", f"{number}{INTERRUPTED}-0", f"-{number}", "９"]
        )
        place = checkpoints / name
        if os.path.lexists(place):
            continue
        kind = chance.random()
        if kind < 0.1:
            place.write_text("")
        elif kind < 0.2:
            place.symlink_to(chance.choice(["1", name, str(whole)]))
        else:
            shutil.copytree(whole, place)
            for part in chance.sample(parts, chance.choice([0, 0, 0, 1, 1, 2, 4])):
                lose(place, part)


def resumed_step(checkpoints: Path) -> int | None:
    """The step that --resume takes."""
    store = Store(checkpoints, keep_every_steps=1)
    try:
        return store.latest()
    finally:
        store.close()


def whole_by_inspect(run: RunDir) -> list[int]:
    try:
        found = read_steps(find(run.path))
    except HarnessError as error:
        if error.code not in ("checkpoint-empty", "not-a-checkpoint"):
            raise
        return []
    return [int(step.path.name) for step in found if step.report.complete and not step.lacks]


@pytest.mark.parametrize("seed", range(40))
def test_status_inspect_and_resume_agree(tmp_path: Path, whole: Path, seed: int) -> None:
    run = run_of(tmp_path / "run", "ours")
    litter(run.checkpoints, whole, seed)
    resumed = resumed_step(run.checkpoints)
    assert read_status(run).saved_step == resumed
    assert whole_by_inspect(run) == whole_steps(run.checkpoints)
    assert (resumed or 0) == resumes_after(run.checkpoints)


@pytest.mark.parametrize("seed", range(20))
def test_they_agree_on_openpis_steps_too(tmp_path: Path, whole: Path, seed: int) -> None:
    run = run_of(tmp_path / "run", "openpi")
    litter(run.checkpoints, whole, seed)
    newest = newest_step(run.checkpoints, "openpi")
    assert read_status(run).saved_step == (None if newest is None else newest + 1)
    # inspect reads the arrays' metadata too, which openpi does when it resumes.
    assert set(whole_by_inspect(run)) <= set(whole_steps(run.checkpoints, "openpi"))


def test_the_random_steps_are_of_every_kind(tmp_path: Path, whole: Path) -> None:
    counts = []
    for seed in range(40):
        (tmp_path / str(seed)).mkdir()
        litter(tmp_path / str(seed), whole, seed)
        counts.append((len(whole_steps(tmp_path / str(seed))), len(step_directories(tmp_path / str(seed)))))
    assert {whole for whole, _ in counts} >= {0, 1, 2, 3}
    assert sum(there - whole for whole, there in counts) > 40


@pytest.mark.parametrize("part", [*OURS, PARAMS, TRAIN_STATE, HARNESS])
def test_inspect_says_what_a_resume_lacks(tmp_path: Path, whole: Path, part: str) -> None:
    run = run_of(tmp_path / "run", "ours")
    step = shutil.copytree(whole, run.checkpoints / "5")
    lose(step, part)
    found = inspect(run.path)
    said = " ".join(found.findings)
    assert (part if part in (COMMIT, RECORD) else part.partition("/")[0]) in said, found
    # One loss is told once: as a step that is not whole, or as one that no run resumes from.
    assert ("is not whole" in said) != ("does not resume" in said), said


@pytest.mark.parametrize("name", ["05", "6"])
def test_inspect_says_that_a_run_resumes_from_no_other_name(tmp_path: Path, whole: Path, name: str) -> None:
    run = run_of(tmp_path / "run", "ours")
    shutil.copytree(whole, run.checkpoints / "4")
    if name == "6":
        (run.checkpoints / name).symlink_to("4")
    else:
        shutil.copytree(whole, run.checkpoints / name)
    found = inspect(run.path)
    # Their parameters are there, to predict with and to export.
    assert all(step.complete for step in found.steps)
    (said,) = [text for text in found.findings if "does not resume" in text]
    assert f"from {name}" in said
    assert "a run resumes from no other" in said
    assert locate(str(run.path)).path.name == name


def test_parameters_alone_in_a_run_are_whole_and_nothing_resumes_from_them(
    tmp_path: Path, whole: Path
) -> None:
    run = run_of(tmp_path / "run", "ours")
    step = shutil.copytree(whole, run.checkpoints / "4")
    shutil.rmtree(step / TRAIN_STATE)
    (step / COMMIT).unlink()
    found = inspect(run.path)
    assert [each.complete for each in found.steps] == [True]
    assert any("does not resume from 4" in text for text in found.findings)
    assert locate(str(run.path)).path.name == "4"
    assert resumed_step(run.checkpoints) is None


def test_a_step_that_is_no_runs_needs_no_file_of_ours(tmp_path: Path, whole: Path) -> None:
    step = shutil.copytree(whole, tmp_path / "checkpoints" / "5")
    shutil.rmtree(step / HARNESS)
    assert [each.complete for each in inspect(tmp_path / "checkpoints").steps] == [True]
    # Released weights, an export that was put into a run: parameters alone.
    run = run_of(tmp_path / "run", "ours")
    shutil.copytree(whole / PARAMS, run.path / "export" / PARAMS)
    assert [each.complete for each in inspect(run.path / "export").steps] == [True]


def test_what_is_said_of_an_interrupted_save_is_where_a_resume_begins(tmp_path: Path, whole: Path) -> None:
    run = run_of(tmp_path / "run", "ours")
    shutil.copytree(whole, run.checkpoints / "4")
    later = shutil.copytree(whole, run.checkpoints / "8")
    shutil.rmtree(later / ASSETS)
    half = shutil.copytree(whole, run.checkpoints / "9")
    (half / RECORD).unlink()
    left = run.checkpoints / f"12{INTERRUPTED}"
    left.mkdir()
    os.utime(left, (0, 0))
    for path in (run.path, left):
        (save,) = inspect(path).interrupted
        assert (save.step, save.safe_to_delete) == (12, True)
        # Step 8 has lost its statistics, which inspect tells; a resume has the run's own.
        assert "training resumes from step 8" in save.reason
    assert resumed_step(run.checkpoints) == read_status(run).saved_step == 8
    assert [step.step for step in inspect(run.path).steps if step.complete] == [4]


# --- no second definition in the source

# Names on disk by the module that says them. What is not listed here may stand in one module only.
OWNED = {
    "run.steps": [
        *(COMMIT, INTERRUPTED, OCDBT_MANIFEST),
        *("record.json", "digests.json", "base.json", "export.json"),
    ],
}
# Whole words that are parts of a path somewhere: there they are these names.
PIECES = {
    "run.steps": {PARAMS, TRAIN_STATE, ASSETS, HARNESS, METADATA},
    "run.directory": {"checkpoints", "metrics.jsonl", "recipe.yaml", "report.html"},
}
# Other facts that have the same name.
OTHER_FACTS = {
    ("run.directory", HARNESS): "the cache of this package: ~/.cache/harness",
}
FILE_NAME = re.compile(r"[\w./-]*\w\.(json|jsonl|yaml|html|txt|png|pbtxt|ocdbt|safetensors|parquet|lock|log)")
DIGITS = {"isdigit", "isdecimal", "isnumeric"}
LISTING = {"iterdir", "glob", "rglob", "scandir", "listdir"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / "harness").rglob("*.py")):
        yield ".".join(path.relative_to(ROOT / "harness").with_suffix("").parts), ast.parse(path.read_text())


def texts(tree: ast.AST) -> list[str]:
    """The strings of a module that are no docstrings, parts of f-strings among them."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    ]


def pieces(tree: ast.AST) -> list[str]:
    """The words of a path: what is joined with `/`, split at the slashes that it has itself."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            for side in (node.left, node.right):
                found += [word for text in texts(side) for word in text.split("/")]
    return found


def second_definitions(name: str, tree: ast.Module) -> list[str]:
    """What the module `name` says itself that another one owns, and how it reads numbers of names."""
    said, found = texts(tree), []
    for owner, words in OWNED.items():
        found += [word for word in words if name != owner and any(word in text for text in said)]
    for owner, names in PIECES.items():
        found += [
            word
            for word in pieces(tree)
            if word in names and name != owner and (name, word) not in OTHER_FACTS
        ]
    found += [METADATA for text in said if text == METADATA and name != "run.steps"]
    return sorted({*found, *numbers_of_names(tree)})


def numbers_of_names(tree: ast.Module) -> list[str]:
    """Where digits of a file's name are looked for beside `step_number`."""
    found = []
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)):
        calls = [
            node
            for node in ast.walk(function)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        ]
        asked = {call.func.attr: call for call in calls if isinstance(call.func, ast.Attribute)}
        for call in calls:
            assert isinstance(call.func, ast.Attribute)
            of = ast.unparse(call.func.value)
            pattern = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else ""
            if call.func.attr in DIGITS and (of.endswith(("name", ".stem")) or asked.keys() & LISTING):
                found.append(f"{of}.{call.func.attr}")
            elif call.func.attr in LISTING and "[0-9]" in str(pattern) and "/proc" not in of:
                found.append(f"{call.func.attr}({pattern!r})")
    return found


def test_no_module_defines_a_step_again() -> None:
    assert {name: found for name, tree in modules() if (found := second_definitions(name, tree))} == {}


def test_a_file_name_stands_in_one_module() -> None:
    where = defaultdict(set)
    for name, tree in modules():
        for text in texts(tree):
            if FILE_NAME.fullmatch(text):
                where[text].add(name)
    assert {text: sorted(names) for text, names in where.items() if len(names) > 1} == {}


@pytest.mark.parametrize(
    "source",
    [
        "_COMMIT = '_CHECKPOINT_METADATA'",
        "def f(p):\n    return (p / '_METADATA').is_file()",
        "X = '_METADATA'",
        "def f(p):\n    return p / 'params' / 'manifest.ocdbt'",
        "def f(p):\n    return p / 'harness/record.json'",
        "def f(p):\n    return f'{p}/harness/base.json'",
        "def f(run):\n    return run / 'checkpoints'",
        "def f(p):\n    return p.name.isdigit()",
        "def f(p):\n    all = [x.name for x in p.iterdir()]\n    return [x for x in all if x.isdecimal()]",
        "def f(p):\n    return any(p.glob('[0-9]*'))",
        "def f(p):\n    return '.orbax-checkpoint-tmp' in p.name",
    ],
)
def test_the_law_sees_a_second_definition(source: str) -> None:
    assert second_definitions("somewhere.else", ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        '"""Of `_CHECKPOINT_METADATA` and harness/record.json."""',
        "def f(version):\n    return [int(part) for part in version.split('.') if part.isdigit()]",
        "def f():\n    return list(Path('/proc').glob('[0-9]*/fd/*'))",
        "X = {'params': 1, 'checkpoints': 2}",
    ],
)
def test_the_law_lets_the_rest_pass(source: str) -> None:
    assert second_definitions("somewhere.else", ast.parse(source)) == []


@pytest.mark.parametrize("look", [whole_steps, newest_step, step_directories, interrupted_saves])
def test_looking_changes_nothing(tmp_path: Path, look: Callable[[Path], object]) -> None:
    put_step(tmp_path, 3)
    (tmp_path / f"4{INTERRUPTED}").mkdir()
    before = sorted((str(path), path.lstat().st_mtime_ns) for path in tmp_path.rglob("*"))
    look(tmp_path)
    assert sorted((str(path), path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_a_step_that_may_not_be_read_is_refused_with_a_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "10").mkdir()

    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    # Root, who runs some of these tests, may read everything.
    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(HarnessError) as caught:
        newest_step(tmp_path)
    assert caught.value.code == "checkpoint-unreadable"
    assert "chmod -R u+rX" in caught.value.fix
