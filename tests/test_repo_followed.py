"""Tests that a printed fix is followed to the end: it runs, it leads on, and it loses nothing.

Each case makes an error as the command line meets it, adds the option that the fix prints, and goes on until
the data are read. A fix that leads back to an error that was there before is a loop, and fails.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.checkpoint.whole import whole_or_nothing
from harness.data import paths
from harness.data.dataset import describe
from harness.errors import HarnessError
from harness.received import denied
from harness.recipe.load import load_recipe
from harness.verbs.answers import with_dataset
from tests.support import lerobot_writer as writer
from tests.support.dataset_breaks import BROKEN, FIRST, change_info

MAPPED = [
    "model.action_horizon=1",
    "data.state=observation.state",
    "data.actions=action",
    "data.cameras.base_0_rgb=cam",
    "data.cameras.left_wrist_0_rgb=null",
]
LINE = r'{"episode_index": %d, "length": %d, "tasks": []}'


def _broken(*names: str) -> Callable[[Path], None]:
    return lambda root: [BROKEN[name][1](root) for name in names] and None


def _emptied(root: Path) -> None:
    (root / FIRST).write_bytes(b"")


def _lengths(*lengths: int) -> Callable[[Path], None]:
    lines = "\n".join(LINE % each for each in enumerate(lengths))

    def change(root: Path) -> None:
        (root / "meta/episodes.jsonl").write_text(lines)
        change_info(root, total_frames=sum(lengths), total_episodes=len(lengths))

    return change


def _nothing(root: Path) -> None:
    pass


# What was done to the dataset, what --dataset names of it, more of --set, and the errors on the way.
FOLLOWED: dict[str, tuple[Callable[[Path], None], str, list[str], list[str]]] = {
    "a table is gone": (_broken("missing parquet"), "", [], ["dataset-file-missing"]),
    "a table is cut": (_broken("truncated parquet"), "", [], ["dataset-file-corrupt"]),
    "rows are gone": (_broken("wrong row count"), "", [], ["dataset-rows-mismatch"]),
    "a number is none": (_broken("NaN action"), "", [], ["dataset-not-finite"]),
    "two are broken": (
        _broken("NaN action", "corrupt PNG"),
        "",
        [],
        ["dataset-not-finite", "image-corrupt"],
    ),
    "broken beside one left out": (
        _broken("missing parquet"),
        "",
        ["data.episodes.exclude=[0]"],
        ["dataset-file-missing"],
    ),
    "no episode left": (_nothing, "", ["data.episodes.exclude=[0-2]"], ["episodes-none-left"]),
    "no such episode": (_nothing, "", ["data.episodes.include=[77]"], ["episodes-not-there"]),
    "no feature of these": (_nothing, "", ["data.state=arm", "data.actions=x"], ["dataset-feature-missing"]),
    "no state": (
        _nothing,
        "",
        ["data.state=null", "model.discrete_state_input=true"],
        ["state-needed"],
    ),
    "relative beyond": (_nothing, "", ["data.relative=0-9"], ["relative-dimension-missing"]),
    "another robot": (_nothing, "", ["data.adapt=aloha"], ["adapt-other-robot"]),
    "wide actions": (_nothing, "", ["model.action_dim=1"], ["action-dim-too-small"]),
    "a revision of a directory": (_nothing, "", ["data.revision=v1"], ["revision-needs-hub"]),
    "a directory inside": (_nothing, "data/chunk-000", [], ["not-a-dataset"]),
    "the directory above": (_nothing, "..", [], ["not-a-dataset"]),
    "a file inside": (_nothing, FIRST, [], ["dataset-not-found"]),
    "set wins over --dataset": (_nothing, "../none", ["data.dataset={root}"], []),
}
# Of these nothing but another dataset helps, so the fix names no option.
ENDS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "all episodes are empty": (_lengths(0, 0), "dataset-metadata-invalid", "correct its length; "),
    "info.json was not copied": (_broken("no info"), "not-a-dataset", "copy it from where"),
    "no episodes": (_broken("zero episodes"), "dataset-empty", "name a dataset"),
}


def options(fix: str) -> list[str]:
    """What the fix gives --set, first alternative; a broken file is left out where the fix can say so."""
    found = re.search(r"(?:--set (?:'[^']*'(?:\"'\"'[^']*')*|[^\s,;]+) ?)+", fix)
    return [] if found is None else [each for each in shlex.split(found[0]) if each != "--set"]


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def refusals(sets: list[str], dataset: str | None) -> list[HarnessError]:
    """The errors on the way of the printed fixes, until the data are read or a fix names no option."""
    found: list[HarnessError] = []
    while True:
        try:
            describe(load_recipe("smoke", with_dataset(sets, dataset)))
            return found
        except HarnessError as refusal:
            found.append(refusal)
        said = [(each.code, each.fix) for each in found]
        assert said.count(said[-1]) == 1, f"a loop: {said}"
        more = [] if "DIR" in said[-1][1] else options(said[-1][1])
        if not more:
            return found
        sets = [*sets, *more]


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_a_fix_prints_is_followed_until_the_data_are_read(tmp_path: Path, name: str) -> None:
    damage, part, sets, codes = FOLLOWED[name]
    root = writer.write(tmp_path / "it's $HOME" / "set")
    damage(root)
    before = files(tmp_path)
    sets = [each.format(root=root) if "{root}" in each else each for each in sets]
    found = refusals([*MAPPED, *sets], str(root / part))
    assert [each.code for each in found] == codes
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ENDS)
def test_a_fix_names_no_option_that_would_lead_back(tmp_path: Path, name: str) -> None:
    damage, code, begins = ENDS[name]
    root = writer.write(tmp_path / "set")
    damage(root)
    (found,) = refusals(MAPPED, str(root))
    assert (found.code, found.fix[: len(begins)]) == (code, begins)


def test_a_dataset_inside_is_found_from_where_the_shell_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = writer.write(tmp_path / "-set")
    monkeypatch.chdir(root / "meta")
    assert [each.code for each in refusals(MAPPED, ".")] == ["not-a-dataset"]


@pytest.mark.parametrize("dataset", ["lab/robot@-x", "lab/robot"])
def test_a_wrong_revision_is_mended_however_it_was_given(dataset: str) -> None:
    sets = [] if "@" in dataset else ["data.revision=-x"]
    found = refusals(sets, dataset)
    assert [each.code for each in found] == ["revision-invalid", "hub-unreachable"]


def test_a_typed_revision_is_the_one_that_is_read() -> None:
    typed = ["data.revision=0123abc"]
    assert load_recipe("smoke", with_dataset(typed, "lab/robot")).data.revision == "0123abc"
    assert load_recipe("smoke", with_dataset(None, "lab/robot@v2")).data.revision == "v2"


def test_a_directory_that_may_not_be_entered_is_no_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = writer.write(tmp_path / "set")
    real = os.stat

    def shut(path: object, **more: object) -> os.stat_result:
        if str(path).startswith(f"{root}/meta/"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(paths.os, "stat", shut)
    with pytest.raises(HarnessError) as caught:
        paths.check_is_dataset(root)
    assert (caught.value.code, caught.value.fix[:6]) == ("dataset-file-unreadable", "chmod ")


def test_only_the_owner_is_told_to_change_a_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = (denied.may_be_opened(tmp_path), denied.may_be_written(tmp_path / "new"))
    assert own[0].startswith(f"chmod u+rwX {tmp_path}, ")
    assert own[1] == f"chmod u+rwX {tmp_path}"
    monkeypatch.setattr(denied.os, "geteuid", lambda: os.getuid() + 1)
    others = (denied.may_be_opened(tmp_path), denied.may_be_written(tmp_path / "new"))
    assert others[0].startswith("run as the user who owns it")
    assert others[1] == f"sudo chown $(id -u) {tmp_path}"


def test_a_directory_that_is_there_stays_and_another_is_named(tmp_path: Path) -> None:
    (tmp_path / "out-2").mkdir()
    for name in ("out", "-o ut"):
        (tmp_path / name).mkdir()
        with pytest.raises(HarnessError) as caught, whole_or_nothing(tmp_path / name, 1):
            pass
        assert caught.value.code == "export-exists"
        free = Path(shlex.split(caught.value.fix)[-1])
        assert (free.parent, free.exists(), "remove" in caught.value.fix) == (tmp_path, False, False)
        with whole_or_nothing(free, 1):
            pass
        assert free.is_dir()


def test_a_recipe_that_is_not_there_is_looked_for_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fix(name: str) -> str:
        with pytest.raises(HarnessError) as caught:
            load_recipe(name)
        return caught.value.fix

    monkeypatch.chdir(tmp_path)
    assert fix("my_robot.yaml") == "correct the path: ls . lists what is there"
    assert fix("smok") == "--recipe smoke"
    (tmp_path / "my recipe.yaml").write_text("{}")
    assert fix("my_recipe.yaml") == "--recipe 'my recipe.yaml'"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text("{}")
    assert fix("run") == "--recipe run/recipe.yaml"
