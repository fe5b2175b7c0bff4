"""Tests that sources that the user did not type are not fetched.

One server must not be asked; every file that names it is tried.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harness.artifacts.training import Manifest
from harness.data.fetch import is_hub_id, resolve
from harness.download.cache import check_may_fetch, fetch_tree
from harness.errors import HarnessError
from harness.received import consent
from harness.received.consent import Named
from harness.recipe.load import load_recipe, recipe_from, shipped_sources, to_yaml
from harness.recipe.schema import PALIGEMMA
from harness.verify.initial import digests_here
from tests.support.file_server import BLOB, TREE, Server, server
from tests.support.item_writer import write_step

__all__ = ["server"]

BY = Named("base.json of a stranger", "--base DIR", 12 * 2**30)


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has said a word."""
    for name in ("HARNESS_MAY_FETCH", "HARNESS_OFFLINE", "HF_HUB_OFFLINE", "WANDB_MODE"):
        # Set first, so that whatever a test sets is taken away after it.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def code_of(call: object, *arguments: object, **options: object) -> HarnessError:
    with pytest.raises(HarnessError) as caught:
        call(*arguments, **options)  # type: ignore[operator]
    return caught.value


def test_what_a_file_names_is_refused_by_name_and_size_and_fetched_after_the_users_word(
    server: Server, tmp_path: Path
) -> None:
    server.files |= TREE
    source = f"{server.url}/ck/params"
    error = code_of(fetch_tree, source, cache=tmp_path, named=BY)
    assert error.code == "fetch-not-asked"
    assert all(part in error.what for part in (source, "12.0 GiB", BY.by or "", "--fetch"))
    assert "--base DIR" in error.fix
    assert (server.requests, list(tmp_path.iterdir())) == ([], [])
    consent.hear(fetch=True, offline=False)
    tree = fetch_tree(source, cache=tmp_path, named=BY)
    # What is here is used without a word.
    os.environ.pop("HARNESS_MAY_FETCH")
    server.requests.clear()
    assert fetch_tree(source, cache=tmp_path, named=BY) == tree
    assert server.requests == []


def test_the_source_and_its_size_are_said_before_the_transfer(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.files |= TREE
    consent.hear(fetch=True, offline=False)
    fetch_tree("gs://bucket/ck/params", cache=tmp_path, named=BY)
    assert "gs://bucket/ck/params (1.0 MiB), which base.json of a stranger names" in caplog.text


@pytest.mark.parametrize("named", [Named(), BY])
def test_offline_is_no_network_at_all(server: Server, named: Named, tmp_path: Path) -> None:
    consent.hear(fetch=False, offline=True)
    error = code_of(fetch_tree, f"{server.url}/ck/params", cache=tmp_path, named=named)
    assert error.code == "offline"
    assert server.requests == []
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["WANDB_MODE"] == "offline"
    assert code_of(consent.hear, fetch=True, offline=False).code == "fetch-and-offline"


def test_what_the_user_types_may_be_fetched_and_what_a_run_names_may_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:

    mine = load_recipe("smoke", ["weights.source=https://mine.example/ck", "data.dataset=lab/robot@v1"])
    assert consent.granted("https://mine.example/ck/")
    assert consent.granted("lab/robot")
    assert not consent.granted("https://other.example/ck")
    (tmp_path / "recipe.yaml").write_text(to_yaml(mine))
    monkeypatch.delenv("HARNESS_MAY_FETCH")
    theirs = load_recipe(str(tmp_path / "recipe.yaml"), ["train.steps=3"], root=tmp_path)
    recipe_from(theirs.model_dump(mode="json"), ["train.steps=3"], where="a manifest")
    assert not consent.granted("https://mine.example/ck")
    assert code_of(resolve, theirs.data.model_copy(update={"dataset": "lab/robot"})).code == "fetch-not-asked"
    # Of a run that goes on, what --set names anew is the user's word, and so is what the package itself
    # names.
    load_recipe(str(tmp_path / "recipe.yaml"), ["weights.source=https://new.example/ck"], root=tmp_path)
    assert consent.granted("https://new.example/ck")
    assert not consent.granted(PALIGEMMA)
    consent.grant_shipped(shipped_sources())
    assert consent.granted(PALIGEMMA)
    assert consent.granted("gs://openpi-assets/checkpoints/pi05_base/params")
    check_may_fetch("gs://openpi-assets/checkpoints/pi05_base/params", BY)
    assert code_of(check_may_fetch, "https://mine.example/ck", BY).code == "fetch-not-asked"


def test_a_recipes_file_is_no_word_for_the_services_of_this_machine(tmp_path: Path) -> None:
    recipe = load_recipe("smoke", ["weights.source=http://127.0.0.1:9/admin"])
    assert consent.granted("http://127.0.0.1:9/admin")
    consent.begin()
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    load_recipe(str(tmp_path / "recipe.yaml"))
    assert code_of(check_may_fetch, "http://127.0.0.1:9/admin", BY).code == "fetch-not-asked"


@pytest.mark.parametrize(
    "name",
    [
        "lab/..",
        "../lab",
        "lab/-x",
        "lab/a--b",
        "lab/a..b",
        "läb/x",
        "lab/robot/extra",
        "lab/x.",
        "a" * 97 + "/x",
        "lab/" + "a" * 97,
    ],
)
def test_what_the_hub_would_not_take_is_no_hub_id(name: str) -> None:
    assert not is_hub_id(name)


@pytest.mark.parametrize("revision", ["../../../x", "/etc/passwd", "a\nb", "", "-x"])
def test_a_revision_is_no_path(revision: str) -> None:
    data = load_recipe("smoke").data.model_copy(update={"dataset": "lab/robot", "revision": revision or " "})
    assert code_of(resolve, data).code == "revision-invalid"


def harness(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_base_json_fetches_nothing_without_fetch(server: Server, tmp_path: Path) -> None:
    arrays = {"action_in_proj/bias": np.ones(4, np.float32)}
    write_step(tmp_path / "base/1", arrays)
    write_step(tmp_path / "run/7", arrays)
    (tmp_path / "run/7/harness").mkdir(exist_ok=True)
    (tmp_path / "run/7/harness/base.json").write_text(
        json.dumps({"source": f"{server.url}/b/params", "sha256": "0"})
    )
    server.files = {
        f"b/{path.relative_to(tmp_path / 'base/1')}": path.read_bytes()
        for path in (tmp_path / "base/1").rglob("*")
        if path.is_file()
    }
    step, cache = str(tmp_path / "run/7"), str(tmp_path / "cache")
    done = harness("inspect", step, "--against", "base", HARNESS_CACHE=cache)
    assert done.returncode == 2
    assert "error [fetch-not-asked]" in done.stderr
    assert f"harness inspect {step} --against base --fetch" in done.stderr
    assert server.requests == []
    done = harness("inspect", step, "--against", "base", "--offline", HARNESS_CACHE=cache)
    assert "error [offline]" in done.stderr
    assert server.requests == []
    # The picture goes into --run.
    done = harness(
        "inspect", step, "--against", "base", "--fetch", "--run", str(tmp_path / "out"), HARNESS_CACHE=cache
    )
    assert f"fetching {server.url}/b/params" in done.stderr
    assert server.requests != []


def test_the_weights_of_a_run_that_goes_on_are_refused_before_anything_is_computed(
    server: Server, tmp_path: Path
) -> None:

    (tmp_path / "run").mkdir()
    recipe = recipe_from(
        load_recipe("smoke").model_dump(mode="json") | {"weights": {"source": f"{server.url}/ck/params"}},
        where="a run",
    )
    (tmp_path / "run/recipe.yaml").write_text(to_yaml(recipe))
    done = harness("train", "--resume", "--run", str(tmp_path / "run"), HARNESS_CACHE=str(tmp_path / "cache"))
    assert "error [fetch-not-asked]" in done.stderr
    assert server.requests == []


# --- the weights of a received manifest ---


def manifest(source: str | None, files: object, *, own: str | None = None) -> Manifest:
    recipe = {"weights": {"source": own if own is not None else source}, "train": {"seed": 1}}
    return Manifest.model_construct(weights={"source": source, "files": files}, recipe=recipe)


def weights_at(path: Path) -> Path:
    write_step(path, {"action_in_proj/bias": np.ones(4, np.float32)})
    return path / "params"


def test_the_recipes_own_weights_are_hashed(tmp_path: Path) -> None:
    params = weights_at(tmp_path / "w")
    found, lack = digests_here(manifest(str(params.parent), {str(params): {"sha256": "0"}}))
    assert lack is None
    assert found is not None
    assert set(found) == {"source", "params"}


def test_no_other_file_of_this_machine_is_hashed(tmp_path: Path) -> None:
    params, secret = weights_at(tmp_path / "w"), tmp_path / "pin.txt"
    secret.write_text("hunter2")
    digest = hashlib.sha256(b"hunter2").hexdigest()
    cases = [
        manifest("/x", {str(secret): {"sha256": "0"}}, own=""),
        manifest(str(params), {str(secret): {"sha256": "0"}}),
        manifest(str(params), {f"{params}/../../pin.txt": {"sha256": "0"}}),
        manifest(str(params), {"/dev/zero": {"sha256": "0"}}),
        manifest(str(secret), {str(secret): {"sha256": "0"}}),
        manifest("/dev/zero", {"/dev/zero": {"sha256": "0"}}),
        manifest(str(tmp_path), {str(tmp_path): {"sha256": "0"}}),
    ]
    for case in cases:
        found, lack = digests_here(case)
        assert found is None
        assert digest not in str(lack)


def test_weights_that_link_to_other_files_are_not_hashed(tmp_path: Path) -> None:
    params = weights_at(tmp_path / "w")
    (tmp_path / "pin.txt").write_text("hunter2")
    (params / "pin").symlink_to(tmp_path / "pin.txt")
    found, lack = digests_here(manifest(str(params), {str(params): {"sha256": "0"}}))
    assert found is None
    assert "not hashed" in str(lack)


def test_of_fetched_weights_only_files_of_the_tree_are_hashed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    server.files |= TREE
    source = "gs://bucket/ck/params"
    claimed = manifest(source, {"d/abc": {"bytes": len(BLOB), "sha256": "0"}})
    found, lack = digests_here(claimed)
    assert (found, server.requests) == (None, [])
    assert all(part in str(lack) for part in (source, "1.0 MiB", "--fetch"))
    fetch_tree(source)
    found, lack = digests_here(claimed)
    assert found == {"source": source, "d/abc": hashlib.sha256(BLOB).hexdigest()}
    (tmp_path / "cache/pin").write_text("hunter2")
    for name in ("../../pin", "../source.json", str(tmp_path / "cache/pin")):
        found, lack = digests_here(manifest(source, {name: {"sha256": "0"}}))
        assert found is None
        assert "no file of" in str(lack)
