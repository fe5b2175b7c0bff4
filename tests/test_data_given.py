"""Tests that a recipe's data.norm_stats are used as they are given, once they are seen to fit the data."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

import pytest

from harness.artifacts import NormStats
from harness.data.loader import Loader
from harness.data.stats import compute, to_openpi_json
from harness.data.transforms import normalize
from harness.errors import HarnessError
from harness.flow.chain import Chain
from harness.recipe.load import load_recipe, shipped_sources
from harness.recipe.norm_stats import location_of_statistics
from harness.recipe.schema import Recipe
from harness.run.directory import RunDir
from tests.support.file_server import Server
from tests.support.real_runs import SMALL
from tests.support.session import CACHE
from tests.support.verifying import harness


def recipe(given: object, *more: str) -> Recipe:
    return load_recipe("smoke", [f"data.norm_stats={given}", *more])


def stats(said: Recipe, run: RunDir | None = None) -> NormStats:
    chain = Chain(run, said)
    return chain.stats(chain.dataset())


@pytest.fixture(scope="module")
def ours() -> NormStats:
    said = load_recipe("smoke")
    return compute(said, Chain(None, said).dataset())


def body(ours: NormStats) -> dict:
    return json.loads(to_openpi_json(ours))


def written(path: Path, found: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return path


def refusal(said: Recipe) -> HarnessError:
    with pytest.raises(HarnessError) as caught:
        stats(said)
    return caught.value


def test_given_statistics_normalize_the_batches_and_are_recorded(tmp_path: Path, ours: NormStats) -> None:
    theirs = body(ours)
    theirs["norm_stats"]["actions"]["q99"][0] += 0.5
    file = written(tmp_path / "norm_stats.json", theirs)
    said = recipe(file)
    chain = Chain(None, said)
    found = chain.stats(chain.dataset())
    assert found.norm_stats["actions"].q99 == theirs["norm_stats"]["actions"]["q99"]
    assert found.given is not None
    assert found.given.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (found.given.source, found.given.form) == (str(file), "openpi's norm_stats.json")
    assert json.loads(to_openpi_json(found)) == theirs
    loader = Loader(said, chain.dataset(), found, batch_size=2, seed=0)
    batch, data = loader.batch(0), loader._batches.sources[0].pictures.data
    chunk = data.action_chunk(int(batch["index"][0]), said.model.action_horizon)[0]
    expected = normalize(chunk, found.norm_stats["actions"], "quantile")
    assert (batch["actions"][0, :, : chunk.shape[1]] == expected).all()


def test_padding_with_zeros_is_no_dimension(tmp_path: Path, ours: NormStats) -> None:
    theirs = body(ours)
    for key in ("state", "actions"):
        for vector in theirs["norm_stats"][key].values():
            vector.extend([0.0] * (32 - len(vector)))
    found = stats(recipe(written(tmp_path / "norm_stats.json", theirs)))
    assert found.norm_stats["actions"].q99 == ours.norm_stats["actions"].q99


@pytest.mark.parametrize("key", ["state", "actions"])
@pytest.mark.parametrize("change", [-1, 1])
def test_statistics_of_another_number_of_dimensions_are_refused(
    tmp_path: Path, ours: NormStats, key: str, change: int
) -> None:
    theirs = body(ours)
    for vector in theirs["norm_stats"][key].values():
        vector[:] = vector[:-1] if change < 0 else [*vector, 1.0]
    refused = refusal(recipe(written(tmp_path / "norm_stats.json", theirs)))
    width = len(ours.norm_stats["state" if key == "state" else "actions"].mean)
    assert refused.code == "norm-stats-other-dimensions"
    assert refused.got == str(width + change)
    assert str(width) in str(refused.need)
    assert "data.norm_stats=null" in refused.fix


def test_inverted_quantiles_and_missing_statistics_are_refused(tmp_path: Path, ours: NormStats) -> None:
    theirs = body(ours)
    actions = theirs["norm_stats"]["actions"]
    actions["q01"], actions["q99"] = actions["q99"], actions["q01"]
    assert refusal(recipe(written(tmp_path / "a.json", theirs))).code == "norm-stats-invalid"
    theirs = body(ours)
    del theirs["norm_stats"]["state"]
    assert refusal(recipe(written(tmp_path / "b.json", theirs))).code == "norm-stats-invalid"
    theirs = body(ours)
    for one in theirs["norm_stats"].values():
        del one["q01"]
        del one["q99"]
    refused = refusal(recipe(written(tmp_path / "c.json", theirs), "data.normalization=zscore"))
    assert refused.code == "norm-stats-invalid"
    assert "q01, q99" in str(refused.got)
    assert refusal(recipe(tmp_path / "none.json")).code == "norm-stats-not-found"


def test_data_that_goes_far_beyond_them_is_found_as_a_comparison_finds_it(
    tmp_path: Path, ours: NormStats
) -> None:
    theirs = body(ours)
    low = theirs["norm_stats"]["actions"]["q01"]
    theirs["norm_stats"]["actions"]["q99"][2] = low[2] + 0.001
    file = written(tmp_path / "norm_stats.json", theirs)
    found = stats(recipe(file))
    assert [(each.key, each.dimension) for each in found.findings] == [("actions", 2)]
    assert found.findings[0].largest_normalized is not None
    assert found.findings[0].largest_normalized > 100
    assert "% of the frames" in found.findings[0].problem
    assert refusal(recipe(file, "data.degenerate_dimensions=error")).code == "stats-degenerate"


def test_base_is_the_asset_beside_the_parameters(tmp_path: Path, ours: NormStats) -> None:
    (tmp_path / "base/params").mkdir(parents=True)
    source = f"weights.source={tmp_path}/base/params"
    refused = refusal(recipe("base", source))
    assert (refused.code, refused.got) == ("norm-stats-not-found", f"no assets in {tmp_path}/base/assets")
    written(tmp_path / "base/assets/trossen/norm_stats.json", body(ours))
    refused = refusal(recipe("base", source))
    assert refused.got == "trossen"
    found = stats(recipe("base", source, shlex.split(refused.fix)[1]))
    assert found.given is not None
    assert found.given.source == f"{tmp_path}/base/assets/trossen/norm_stats.json"
    assert refusal(recipe("base")).code == "norm-stats-need-weights"


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("base", "gs://openpi-assets/checkpoints/pi05_base/assets/trossen/norm_stats.json"),
        ("gs://bucket/assets/droid", "gs://bucket/assets/droid/norm_stats.json"),
        ("https://host/droid/norm_stats.json", "https://host/droid/norm_stats.json"),
    ],
)
def test_the_place_of_remote_statistics(given: str, place: str) -> None:
    said = load_recipe("pi05_libero", [f"data.norm_stats={given}", "data.asset_id=trossen"])
    assert location_of_statistics(said) == place
    assert location_of_statistics(load_recipe("pi05_libero")) is None
    assert None not in shipped_sources()


def test_remote_statistics_are_downloaded_into_the_cache(
    tmp_path: Path, ours: NormStats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    server = Server()
    server.files["base/assets/trossen/norm_stats.json"] = json.dumps(body(ours)).encode()
    said = recipe("base", f"weights.source={server.url}/base/params", "data.asset_id=trossen")
    found = stats(said)
    server.httpd.shutdown()
    assert found.norm_stats["actions"].q99 == ours.norm_stats["actions"].q99


def test_a_started_run_goes_on_with_its_own_statistics(tmp_path: Path, ours: NormStats) -> None:
    theirs = body(ours)
    theirs["norm_stats"]["actions"]["q99"][0] += 0.5
    file = written(tmp_path / "norm_stats.json", theirs)
    run, common = tmp_path / "run", ("--recipe", "smoke", *SMALL)
    sets = (f"--set=data.norm_stats={file}", "--set=train.save_every_steps=1")
    harness(CACHE, "train", "--run", str(run), *common, *sets, "--set=train.steps=1")
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["norm_stats_given"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    kept = next((run / "checkpoints").glob("*/assets/*/norm_stats.json"))
    assert json.loads(kept.read_text()) == theirs
    before = json.loads((run / "norm_stats.json").read_bytes())["norm_stats"]
    file.rename(tmp_path / "gone.json")
    harness(CACHE, "train", "--run", str(run), "--resume", "--set=train.steps=2")
    assert json.loads((run / "norm_stats.json").read_bytes())["norm_stats"] == before
    theirs["norm_stats"]["actions"]["q99"][0] += 0.5
    written(file, theirs)
    # Refused: these are not the statistics that the run was started with.
    harness(CACHE, "train", "--run", str(run), "--resume", "--set=train.steps=3", code=2)
    assert json.loads((run / "norm_stats.json").read_bytes())["norm_stats"] == before
