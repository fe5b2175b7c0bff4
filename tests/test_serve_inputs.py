"""Tests that a client's observation becomes what the loader makes of that frame, under any of its names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.openpi_inputs import CASES, made
from harness.data.batch import one_frame
from harness.data.lerobot import open_data
from harness.data.tokenizer import load_tokenizer
from harness.data.transforms import resize_with_pad
from harness.errors import HarnessError
from harness.recipe.schema import Recipe
from harness.serve.check import observation_of
from harness.serve.inputs import Asked, Reader
from harness.serve.noise import MOST_SEED
from harness.serve.wire import pack, unpack
from tests.support import robots
from tests.support.served import libero, reader_of
from tests.support.tiny import tiny
from tests.test_openpi_inputs import recipe_of, stats_of

BUCKETS = (16, 64)
# What openpi's own clients send of a frame of these robots: its name ← the dataset's feature.
OPENPI = {
    "libero": {
        "observation/image": "image",
        "observation/wrist_image": "wrist_image",
        "observation/state": "state",
    },
    "droid": {
        "observation/exterior_image_1_left": "exterior_image_1_left",
        "observation/wrist_image_left": "wrist_image_left",
        "observation/joint_position": "joint_position",
        "observation/gripper_position": "gripper_position",
    },
    "aloha": {
        "images/cam_high": "observation.images.cam_high",
        "images/cam_left_wrist": "observation.images.cam_left_wrist",
        "images/cam_right_wrist": "observation.images.cam_right_wrist",
        "state": "observation.state",
    },
}


def read(observation: dict[str, Any], *sets: str, **more: Any) -> Asked:
    return reader_of(tiny(*sets), BUCKETS, **more).read(observation)


def refusal(observation: Any, *sets: str, **more: Any) -> HarnessError:
    with pytest.raises(HarnessError) as caught:
        read(observation, *sets, **more)
    assert "\n" not in str(caught.value)
    return caught.value


def names_of(recipe: Recipe) -> dict[str, str]:
    """openpi's names for the features of this recipe."""
    features = {*filter(None, recipe.data.cameras.values()), *recipe.data.state_features}
    return next(
        (
            {name: own for name, own in table.items() if own in features}
            for table in OPENPI.values()
            if set(recipe.data.state_features) <= set(table.values())
        ),
        {},
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["own", "openpi", "channels first", "floats", "dots", "nested"])
def test_every_robot_of_openpi_gives_the_model_what_training_gives_it(
    case: str, form: str, tmp_path: Path
) -> None:
    """tests/test_openpi_inputs.py holds the loader to openpi's transforms; here the server to the loader."""
    dataset = robots.write(tmp_path, made(CASES[case][0]))
    recipe = recipe_of(case, dataset)
    data = open_data(recipe.data, dataset)
    stats = dict(stats_of(case).norm_stats.items())
    batch = one_frame(recipe, data, stats, 20)
    width = len(data.state(20))
    reader = Reader(recipe, stats, width, (recipe.model.prompt_tokens,), load_tokenizer("sample"))
    sent = observation_of(recipe, data, 20)
    if form == "openpi":
        names = names_of(recipe)
        assert len(names) >= (1 if case == "aloha_one_camera" else 3)
        ours = {own: name for name, own in names.items()}
        sent = {ours.get(name, name): value for name, value in sent.items()}
    if form in ("channels first", "floats"):
        pictures = {name: value for name, value in sent.items() if np.ndim(value) == 3}
        if form == "floats":
            # A little above, so that rounding down gives the picture back.
            pictures = {name: (value + np.float32(0.001)) / 255 for name, value in pictures.items()}
        else:
            pictures = {name: value.transpose(2, 0, 1) for name, value in pictures.items()}
        sent |= pictures
    if form == "dots":
        sent = {name.replace("/", "."): value for name, value in sent.items()}
    if form == "nested":
        sent = {"observation": {name: value for name, value in sent.items() if name != "prompt"}} | {
            "prompt": sent["prompt"]
        }
    asked = reader.read(sent)
    assert asked.images.keys() == batch["images"].keys()
    for camera, image in batch["images"].items():
        np.testing.assert_array_equal(asked.images[camera], image[0])
    np.testing.assert_array_equal(asked.tokens, batch["tokens"][0])
    np.testing.assert_array_equal(asked.token_mask, batch["token_mask"][0])
    assert asked.seed == 20


def test_alohas_map_of_pictures_is_taken_as_openpis_example_client_sends_it(tmp_path: Path) -> None:
    """With a fourth camera that the model does not see. Source: openpi examples/simple_client/main.py."""
    dataset = robots.write(tmp_path, robots.aloha())
    recipe = recipe_of("aloha_pen_uncap", dataset)
    stats = dict(stats_of("aloha_pen_uncap").norm_stats.items())
    reader = Reader(recipe, stats, 14, (recipe.model.prompt_tokens,), load_tokenizer("sample"))
    random = np.random.default_rng(0)
    names = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
    images = {name: random.integers(0, 256, (3, 224, 224), dtype=np.uint8) for name in names}
    asked = reader.read({"state": np.ones(14), "images": images, "prompt": "do something"})
    for camera, name in (("base_0_rgb", "cam_high"), ("right_wrist_0_rgb", "cam_right_wrist")):
        np.testing.assert_array_equal(asked.images[camera], images[name].transpose(1, 2, 0))
    assert len(asked.images) == 3
    assert reader.actions(np.zeros((50, 32), np.float32), asked).shape == (50, 14)
    # A wrist without a camera is not seen, as in openpi's AlohaInputs. A picture under a wrong name is told.
    for lost in ({"cam_right_wrist"}, {"cam_left_wrist", "cam_right_wrist"}):
        fewer = {name: picture for name, picture in images.items() if name not in lost}
        asked = reader.read({"state": np.ones(14), "images": fewer, "prompt": "do something"})
        assert len(asked.images) == 3 - len(lost)
        with pytest.raises(HarnessError, match=r"lacks the camera (left|right)_wrist_0_rgb"):
            reader.read({"state": np.ones(14), "images": fewer | {"cam_right": images["cam_high"]}})
    with pytest.raises(HarnessError, match="lacks the camera base_0_rgb"):
        reader.read({"state": np.ones(14), "images": {"cam_left_wrist": images["cam_high"]}})


def test_pictures_of_any_size_are_resized_with_padding() -> None:
    random = np.random.default_rng(0)
    for shape in ((480, 640, 3), (56, 56, 3), (7, 300, 3), (1, 1, 3)):
        image = random.integers(0, 256, shape, dtype=np.uint8)
        asked = read(libero() | {"observation/image": image})
        np.testing.assert_array_equal(asked.images["base_0_rgb"], resize_with_pad(image, 56))


def test_prompts_take_the_shortest_bucket_that_holds_them_and_are_kept() -> None:
    reader = reader_of(tiny(), BUCKETS)
    short, long = reader.read(libero(prompt="go")), reader.read(libero(prompt="go " * 30))
    assert (len(short.tokens), len(long.tokens)) == BUCKETS
    assert short.token_mask.sum() < 16 < long.token_mask.sum()
    cut = reader.read(libero(prompt="pick up the bowl " * 60))
    assert cut.token_mask.all()
    assert reader.read(libero(prompt="go")).tokens is short.tokens


@pytest.mark.parametrize("prompt", [b"go", np.array("go"), np.array(["go"]), np.str_("go")])
def test_a_prompt_is_taken_in_every_form_that_openpi_takes(prompt: Any) -> None:
    np.testing.assert_array_equal(read(libero(prompt=prompt)).tokens, read(libero(prompt="go")).tokens)


@pytest.mark.parametrize(("seed", "found"), [(None, None), (np.array(5), 5), (np.uint32(5), 5)])
def test_a_seed_is_taken_in_every_form_that_a_client_packs(seed: Any, found: int | None) -> None:
    assert read(libero(noise_seed=seed)).seed == found


def test_a_list_of_an_arrays_elements_is_a_state() -> None:
    """openpi's client packs each float32 of it as numpy's number."""
    want = libero()["observation/state"].astype(np.float32)
    sent = unpack(pack(libero() | {"observation/state": list(want)}))
    np.testing.assert_array_equal(read(sent).state, want)


def test_a_request_without_prompt_has_the_recipes() -> None:
    without = {key: value for key, value in libero().items() if key != "prompt"}
    assert refusal(without).code == "observation-key-missing"
    want = read(libero(prompt="wipe")).tokens
    np.testing.assert_array_equal(read(without, "data.default_prompt=wipe").tokens, want)
    np.testing.assert_array_equal(read(without, "data.prompt=wipe").tokens, want)
    np.testing.assert_array_equal(read(libero(prompt="other"), "data.prompt=wipe").tokens, want)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"observation/image": None}, "NoneType"),
        ({"observation/image": np.zeros((224, 224), np.uint8)}, "(224, 224)"),
        ({"observation/image": np.zeros((224, 224, 4), np.uint8)}, "(224, 224, 4)"),
        ({"observation/image": np.zeros((1, 224, 224, 3), np.uint8)}, "(1, 224, 224, 3)"),
        ({"observation/image": np.zeros((0, 224, 3), np.uint8)}, "pixels"),
        ({"observation/image": np.full((8, 8, 3), 2.0)}, "floats from 0 to 1"),
        ({"observation/image": np.full((8, 8, 3), np.nan)}, "floats from 0 to 1"),
        ({"observation/image": np.full((8, 8, 3), -1)}, "0 to 255"),
        ({"observation/image": np.full((8, 8, 3), True)}, "uint8"),
        ({"observation/image": np.full((8, 8, 3), "a")}, "uint8"),
        ({"observation/state": np.ones(7)}, "7 in observation/state"),
        ({"observation/state": np.ones((1, 8))}, "shape (1, 8)"),
        ({"observation/state": np.array([np.inf] * 8)}, "[0] is not finite"),
        ({"observation/state": np.full(8, 1e300)}, "[0] is not finite"),
        ({"observation/state": "abc"}, "no vector"),
        ({"observation/state": [1, "a"]}, "no vector"),
        ({"observation/state": [2**100] * 8}, ""),
        ({"prompt": 3}, "no text"),
        ({"prompt": np.array("\ud800")}, "no character of Unicode"),
        ({"prompt": np.frombuffer(b"\xff\xff\xff\x7f", "<U1")}, "no character of Unicode"),
        ({"prompt": "a" * 10_000}, "too long"),
        ({"noise_seed": -1}, "-1"),
        ({"noise_seed": MOST_SEED + 1}, "4294967296"),
        ({"noise_seed": True}, "no seed"),
        ({"noise_seed": 1.5}, "1.5"),
        ({"noise_seed": np.array([1])}, "no seed"),
        ({"noise_sed": 1}, "noise_seed"),
        ({"promt": "a"}, "prompt"),
        ({f"map{k}": dict.fromkeys(map(str, range(200)), 0) for k in range(6)}, "too many keys"),
        ({"image": np.zeros((8, 8, 3), np.uint8)}, "the same"),
    ],
)
def test_what_breaks_the_contract_is_named(change: dict[str, Any], says: str) -> None:
    assert says in str(refusal(libero() | change))


def test_a_missing_camera_is_named_with_what_came() -> None:
    sent = {key: value for key, value in libero().items() if "wrist" not in key}
    found = refusal(sent)
    assert found.code == "observation-key-missing"
    assert "left_wrist_0_rgb" in found.what
    assert "'observation/image'" in str(found.got)
    assert refusal([1]).code == refusal(None).code == "observation-invalid"


def test_a_state_is_needed_only_where_the_model_or_the_actions_read_it() -> None:
    without = {key: value for key, value in libero().items() if "state" not in key}
    assert read(without).state is None
    for sets in ("model.discrete_state_input=true", "data.relative=0-5"):
        assert refusal(without, sets).code == "observation-key-missing"


def test_relative_actions_have_the_state_added_again() -> None:
    plain, relative = reader_of(tiny(), BUCKETS), reader_of(tiny("data.relative=0-2"), BUCKETS)
    sampled = np.random.default_rng(0).normal(size=(10, 32)).astype(np.float32)
    asked = plain.read(libero())
    assert asked.state is not None
    added = relative.actions(sampled, asked) - plain.actions(sampled, asked)
    want = np.where(np.arange(7) < 3, asked.state[:7], 0)
    np.testing.assert_allclose(added, np.broadcast_to(want, added.shape), atol=1e-6)


def test_openpis_name_of_one_camera_is_not_taken_where_the_dataset_calls_another_so() -> None:
    crossed = ("data.cameras.base_0_rgb=wrist_image", "data.cameras.left_wrist_0_rgb=image")
    plain, other = read(libero()), read(libero(), *crossed)
    np.testing.assert_array_equal(plain.images["base_0_rgb"], other.images["left_wrist_0_rgb"])
    np.testing.assert_array_equal(plain.images["left_wrist_0_rgb"], other.images["base_0_rgb"])


def test_features_whose_names_differ_in_nothing_that_counts_are_told_apart() -> None:
    alike = ("data.cameras.base_0_rgb=image", "data.cameras.left_wrist_0_rgb=observation.image")
    first, second = libero()["observation/image"], libero()["observation/wrist_image"]
    asked = read({"image": first, "observation.image": second, "prompt": "go"}, *alike)
    np.testing.assert_array_equal(asked.images["base_0_rgb"], resize_with_pad(first, 56))
    np.testing.assert_array_equal(asked.images["left_wrist_0_rgb"], resize_with_pad(second, 56))


def test_actions_that_are_not_finite_are_no_answer() -> None:
    reader = reader_of(tiny(), BUCKETS)
    with pytest.raises(HarnessError) as caught:
        reader.actions(np.full((10, 32), np.nan, np.float32), reader.read(libero()))
    assert caught.value.code == "prediction-not-finite"


@pytest.mark.parametrize(
    "sets",
    [(), ("model.discrete_state_input=true",), ("data.relative=0-5",), ("data.state=null",)],
)
def test_warming_up_reads_an_observation_of_every_recipe(sets: tuple[str, ...]) -> None:
    for width in (8, None):
        reader_of(tiny(*sets), BUCKETS, width if sets != ("data.relative=0-5",) else 8).warm()
