"""Tests of mixtures of datasets: what a recipe may say, the order, the batches, and what is told of them."""

from __future__ import annotations

import pickle
from collections import Counter
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from harness.artifacts import Dataset, NormStats
from harness.data.dataset import describe, open_for
from harness.data.fetch import Resolved
from harness.data.loader import Loader
from harness.data.mixture import shares_of
from harness.data.order import Order, draw
from harness.data.sample import sample_dataset_path
from harness.data.stats import compute
from harness.errors import HarnessError
from harness.recipe.load import load_recipe, recipe_from, to_yaml
from harness.recipe.schema import Recipe
from tests.support import lerobot_writer as writer
from tests.support.mixtures import MAPPED, mixture, three

SAMPLE = {
    "dataset": "sample",
    "cameras": {"base_0_rgb": "image", "left_wrist_0_rgb": "wrist_image", "right_wrist_0_rgb": None},
    "state": "state",
    "actions": "actions",
}
WEIGHTED = (0.5, 0.3, 0.2)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return three(tmp_path_factory.mktemp("mixture"))


@pytest.fixture(scope="module")
def mixed(names: list[str]) -> tuple[Recipe, Dataset, NormStats]:
    """a, b and the sample, whose cameras, dimensions and rate are others."""
    said = mixture(
        {"dataset": names[0], "weight": 0.5},
        {"dataset": names[1], "weight": 0.3, "episodes": {"exclude": [1]}},
        SAMPLE | {"weight": 0.2},
    )
    found = describe(said)
    return said, found, compute(said, found)


def loader(mixed: tuple[Recipe, Dataset, NormStats], **more: int) -> Loader:
    return Loader(*mixed, **({"batch_size": 10, "seed": 42} | more))


def refused(*members: dict, sets: tuple[str, ...] = ()) -> HarnessError:
    with pytest.raises(HarnessError) as caught:
        describe(mixture(*members, sets=sets))
    return caught.value


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([{"dataset": "a", "weight": 0}, {"dataset": "b", "weight": 1}], "data.datasets.0.weight"),
        ([{"dataset": "a", "weight": -1}], "data.datasets.0.weight"),
        ([{"dataset": "a", "weight": float("inf")}], "data.datasets.0.weight"),
        ([{"dataset": "a", "weight": 1}, {"dataset": "b"}], "data.datasets.1 has no weight"),
        ([{"dataset": "a"}, {"dataset": "b"}, {"dataset": "a/"}], "a is named twice"),
        ([{"dataset": "x/y@v1"}, {"dataset": "x/y"}], "x/y is named twice"),
        ([{"dataset": "a", "wieght": 1}], "did you mean 'weight'?"),
        ([{"dataset": "a", "camera": {}}], "did you mean 'cameras'?"),
        ([{"weight": 1}], "data.datasets.0.dataset"),
        ([], "at least 1"),
    ],
)
def test_what_a_mixture_may_not_say_is_named(members: list[dict], told: str) -> None:
    with pytest.raises(HarnessError) as caught:
        mixture(*members)
    assert caught.value.code == "recipe-invalid"
    assert told in caught.value.what


def test_one_dataset_and_several_are_not_said_together() -> None:
    tree = load_recipe("smoke").model_dump(mode="json")
    tree["data"]["datasets"] = [{"dataset": "a"}]
    with pytest.raises(HarnessError, match="give one of them"):
        recipe_from(tree, where="test")
    tree["data"]["dataset"] = None
    assert recipe_from(tree, where="test").data.dataset == "mixture"
    tree["data"]["episodes"] = {"exclude": [1]}
    with pytest.raises(HarnessError, match=r"data.datasets.0.episodes"):
        recipe_from(tree, where="test")


def test_a_dataset_takes_what_it_does_not_say_from_the_recipe(tmp_path: Path) -> None:
    said = mixture({"dataset": "a"}, {"dataset": "b", "state": None}, sets=("data.tokenizer=sample",))
    members = said.data.datasets
    assert members is not None
    assert [member.state for member in members] == ["observation.state", None]
    inherits = load_recipe(
        "smoke", ["data.prompt=fold", "data.datasets=[{dataset: a}, {dataset: b, prompt: null}]"]
    )
    assert [part.prompt for part in inherits.data.parts()] == ["fold", None]
    assert [part.key for part in inherits.data.parts()] == ["data.datasets.0", "data.datasets.1"]
    (tmp_path / "again.yaml").write_text(to_yaml(inherits))
    again = load_recipe(str(tmp_path / "again.yaml"))
    assert again == inherits
    assert again.sha256() == inherits.sha256()


def test_options_reach_a_dataset_by_its_place_and_one_dataset_can_take_the_mixtures_place() -> None:
    said = mixture({"dataset": "a"}, {"dataset": "b", "state": None}).model_dump(mode="json")
    options = ["data.datasets.0.weight=2", "data.datasets.1.weight=1", "data.datasets.1.episodes.exclude=3-4"]
    changed = recipe_from(said, options, where="test")
    assert changed.data.datasets is not None
    assert [member.weight for member in changed.data.datasets] == [2.0, 1.0]
    assert changed.data.parts()[1].episodes is not None
    one = recipe_from(said, ["data.dataset=b", "data.revision=null"], where="test")
    assert (one.data.datasets, one.data.dataset, one.data.state, one.data.actions) == (
        None,
        "b",
        None,
        "action",
    )
    for place in ("2", "x"):
        with pytest.raises(HarnessError) as caught:
            recipe_from(said, [f"data.datasets.{place}.weight=2"], where="test")
        assert caught.value.code == "override-invalid"


@pytest.mark.parametrize(
    ("weights", "frames", "shares"),
    [
        ((0.7, 0.3), (5, 100), [7, 3]),
        ((3, 1), (5, 100), [3, 1]),
        ((0.1, 0.2, 0.7), (1, 1, 1), [1, 2, 7]),
        ((1e-3, 1), (1, 1), [1, 1000]),
        ((None, None), (20, 100), [1, 5]),
    ],
)
def test_shares_are_the_weights_as_they_are_written_and_else_the_frames(
    weights: tuple, frames: tuple, shares: list[int]
) -> None:
    members = [{"dataset": str(n)} | ({"weight": w} if w else {}) for n, w in enumerate(weights)]
    assert shares_of(mixture(*members), frames) == shares


@pytest.mark.parametrize("shares", [[1], [7, 3], [1, 2, 3, 4], [1, 1000], [5, 1, 1, 1]])
def test_every_round_has_the_exact_shares_and_none_is_ever_far_off(shares: list[int]) -> None:
    whole, seen = sum(shares), Counter[int]()
    for sample in range(3 * whole):
        part, before = draw(sample, shares)
        assert before == seen[part]
        seen[part] += 1
        off = [seen[n] - (sample + 1) * share / whole for n, share in enumerate(shares)]
        assert max(map(abs, off)) < len(shares)
        if (sample + 1) % whole == 0:
            assert [seen[n] for n in range(len(shares))] == [
                share * (sample + 1) // whole for share in shares
            ]


def test_a_sample_far_out_is_drawn_at_once() -> None:
    part, before = draw(2**60, [123_456_789, 987_654_321, 5])
    assert part in (0, 1, 2)
    assert before <= 2**60


def test_each_dataset_goes_through_its_own_epochs() -> None:
    order = Order([16, 22, 9], [5, 3, 2], 42, 10, range(10))
    seen = [frame for step in range(100) for frame in order(step)]
    for part, frames in enumerate((16, 22, 9)):
        own = [frame.number for frame in seen if frame.part == part]
        epochs = [own[i : i + frames] for i in range(0, len(own) - frames, frames)]
        assert all(sorted(epoch) == list(range(frames)) for epoch in epochs)
        assert epochs[0] != epochs[1]
    assert Counter(frame.part for frame in seen) == {0: 500, 1: 300, 2: 200}
    assert [
        frame for step in range(100) for frame in Order([16, 22, 9], [5, 3, 2], 43, 10, range(10))(step)
    ] != seen


def test_without_weights_an_epoch_has_every_frame_once() -> None:
    order = Order([16, 22, 9], [16, 22, 9], 0, 47, range(47))
    for step in range(3):
        expected = [(part, n) for part, frames in enumerate((16, 22, 9)) for n in range(frames)]
        assert sorted(order(step)) == expected


def test_the_first_dataset_of_a_mixture_is_shuffled_as_if_it_were_alone() -> None:
    alone = Order([16], [1], 7, 4, range(4))
    first = [
        frame.number
        for step in range(20)
        for frame in Order([16, 5], [1, 1], 7, 8, range(8))(step)
        if frame.part == 0
    ]
    assert first[:40] == [frame.number for step in range(10) for frame in alone(step)]


def test_a_row_is_what_its_dataset_alone_gives(mixed: tuple[Recipe, Dataset, NormStats]) -> None:
    said, found, stats = mixed
    made = loader(mixed)
    firsts = [0, 16, 38]
    for step in range(3):
        batch = made.batch(step)
        assert batch["dataset"].dtype == np.int32
        np.testing.assert_array_equal(made.dataset_of(batch["index"]), batch["dataset"])
        for row, (part, index) in enumerate(zip(batch["dataset"], batch["index"], strict=True)):
            own = said.parts()[part]
            data = open_for(own)[1]
            i = int(index) - firsts[part]
            np.testing.assert_array_equal(batch["image_masks"]["left_wrist_0_rgb"][row], part == 2)
            assert batch["image_masks"]["base_0_rgb"][row]
            chunk, _ = data.action_chunk(i, said.model.action_horizon)
            width = chunk.shape[-1]
            one = stats.norm_stats["actions"]
            low, high = np.array(one.q01[:width]), np.array(one.q99[:width])
            expected = (chunk - low) / (high - low + 1e-6) * 2 - 1
            np.testing.assert_allclose(batch["actions"][row, :, :width], expected, atol=1e-5)
            assert not batch["actions"][row, :, width:].any()
            assert (batch["images"]["left_wrist_0_rgb"][row].any()) == (part == 2)
    assert found.shares == [5, 3, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mixture_goes_on_at_any_step_with_any_number_of_workers(
    mixed: tuple[Recipe, Dataset, NormStats], workers: int
) -> None:
    plain = loader(mixed)
    with closing(loader(mixed, workers=workers).iterate(5)) as batches:
        for step, batch in zip(range(5, 8), islice(batches, 3), strict=True):
            again = plain.batch(step)
            for name in ("index", "dataset", "actions", "tokens", "token_mask"):
                np.testing.assert_array_equal(batch[name], again[name])
            for camera, images in again["images"].items():
                np.testing.assert_array_equal(batch["images"][camera], images)


def test_the_shards_of_several_processes_are_the_batch(mixed: tuple[Recipe, Dataset, NormStats]) -> None:
    whole = loader(mixed).batch(4)
    shards = [loader(mixed, shard=n, shards=5).batch(4) for n in range(5)]
    for name in ("index", "dataset", "actions"):
        np.testing.assert_array_equal(np.concatenate([shard[name] for shard in shards]), whole[name])
    np.testing.assert_array_equal(loader(mixed, shard=3, shards=5).index_of(4), whole["index"])


def test_frames_by_their_numbers_are_those_of_the_batch(mixed: tuple[Recipe, Dataset, NormStats]) -> None:
    made = pickle.loads(pickle.dumps(loader(mixed)._batches)), loader(mixed)
    batch = made[1].batch(2)
    again = made[1].frames([int(i) for i in batch["index"]])
    np.testing.assert_array_equal(again["actions"], batch["actions"])
    np.testing.assert_array_equal(made[0](2)["index"], batch["index"])


def test_a_mixture_of_one_dataset_is_that_dataset(names: list[str]) -> None:
    alone = mixture({"dataset": names[0], "weight": 3.0})
    plain = recipe_from(alone.model_dump(mode="json"), [f"data.dataset={names[0]}"], where="test")
    made = [
        Loader(said, found, compute(said, found), batch_size=8, seed=1)
        for said in (alone, plain)
        for found in [describe(said)]
    ]
    for step in range(4):
        one, other = (each.batch(step) for each in made)
        for name in ("index", "actions", "tokens", "state"):
            np.testing.assert_array_equal(one[name], other[name])


def test_what_differs_between_datasets_is_found(mixed: tuple[Recipe, Dataset, NormStats]) -> None:
    _, found, _ = mixed
    rates, widths = found.findings
    assert "10 (1 s)" in rates
    assert "20 (0.5 s)" in rates
    assert widths.endswith("sample 7")
    assert (found.episodes, found.frames) == (3 + 3 + 8, 16 + 22 + 100)
    assert found.members[1].left_out is not None
    assert found.path == ""


def test_a_dataset_under_two_names_is_refused(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "link").symlink_to(names[0])
    error = refused({"dataset": names[0]}, {"dataset": str(tmp_path / "link")})
    assert error.code == "dataset-twice"
    assert "data.datasets.1" in error.fix
    writer.write(tmp_path / "copy")
    assert refused({"dataset": names[0]}, {"dataset": str(tmp_path / "copy")}).code == "dataset-twice"
    assert refused(SAMPLE, SAMPLE | {"dataset": str(sample_dataset_path())}).code == "dataset-twice"


def test_a_fix_names_the_key_of_its_dataset(tmp_path: Path) -> None:
    good, bad = writer.write(tmp_path / "good"), writer.write(tmp_path / "bad", lengths=(6, 5, 4))
    (bad / "data/chunk-000/episode_000002.parquet").unlink()
    error = refused({"dataset": str(good)}, {"dataset": str(bad)})
    assert "--set 'data.datasets.1.episodes.exclude=[2]'" in error.fix
    said = mixture({"dataset": str(good)}, {"dataset": str(bad)}).model_dump(mode="json")
    mended = recipe_from(said, ["data.datasets.1.episodes.exclude=[2]"], where="test")
    assert describe(mended).frames == 16 + 11


def test_frames_without_an_instruction_take_the_default_of_their_dataset(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    lines = (root / "meta/tasks.jsonl").read_text().splitlines()
    (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": " "}\n' + "\n".join(lines[1:]) + "\n")
    without = describe(mixture({"dataset": str(root)}))
    assert any("no instruction" in text for text in without.members[0].findings)
    said = mixture({"dataset": str(root), "default_prompt": "open the drawer"})
    found = describe(said)
    assert not any("no instruction" in text for text in found.members[0].findings)
    made = Loader(said, found, compute(said, found), batch_size=16, seed=0)
    data, batch = open_for(said.parts()[0])[1], made.batch(0)
    from harness.data.tokenizer import load_tokenizer

    encoded = load_tokenizer("sample").encode("open the drawer")
    blank = [row for row, i in enumerate(batch["index"]) if data.task_index(int(i)) == 0]
    assert blank
    for row in blank:
        assert list(batch["tokens"][row][batch["token_mask"][row]]) == encoded[: found.prompt_tokens]


def test_resolved_places_that_differ_are_no_repeat() -> None:
    from harness.data.dataset import check_each_once

    check_each_once([Resolved(Path("/a"), "a", None), Resolved(Path("/b"), "b", None)])
    assert MAPPED["actions"] == "action"
