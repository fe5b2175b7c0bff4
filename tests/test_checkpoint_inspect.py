"""Tests `inspect` on checkpoints of openpi's own code, on ours, and on items from tensorstore alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.checkpoint.inspect import inspect
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.recipe.parameters import group_of, parameter_shapes
from harness.recipe.schema import Recipe
from tests.support.item_writer import shapes_of, write_step
from tests.support.openpi_checkpoints import STEP, openpi_checkpoint

ROOT = Path(__file__).parent.parent


def test_openpi_full(tmp_path: Path) -> None:
    found = inspect(openpi_checkpoint("full", tmp_path))
    assert [(step.step, step.complete, step.missing) for step in found.steps] == [(STEP["full"], True, [])]
    assert (found.layout, found.step, found.partial, found.findings) == ("openpi", STEP["full"], False, [])
    assert (found.lora.present, found.lora.rank, found.lora.parameters) == (False, {}, 0)
    assert (found.parameters_total, found.parameters_trained, found.ema) == (544_160, 544_160, True)
    assert {name: group.parameters for name, group in found.parameters.items()} == {
        "vision": 41_920,
        "language": 205_376,
        "expert": 284_352,
        "projections": 12_512,
    }
    assert {dtype for group in found.parameters.values() for dtype in group.dtypes} == {"float32"}
    assert found.non_finite is None
    assert "non_finite" in found.unknown
    sizes = {item.name: item.bytes for item in found.steps[0].items}
    step = tmp_path / "openpi_checkpoint_full" / str(STEP["full"])
    assert sizes["params"] == sum(
        file.stat().st_size for file in (step / "params").rglob("*") if file.is_file()
    )


def test_openpi_lora(tmp_path: Path) -> None:
    found = inspect(openpi_checkpoint("lora", tmp_path))
    assert [(step.step, step.complete) for step in found.steps] == [(STEP["lora"], True)]
    assert found.lora.present is True
    assert set(found.lora.rank.values()) == {4}
    assert set(found.lora.rank) == {
        "PaliGemma attention",
        "PaliGemma feed-forward",
        "action expert attention",
        "action expert feed-forward",
    }
    assert (found.lora.parameters, found.parameters_total, found.parameters_trained, found.ema) == (
        64_512,
        608_672,
        118_944,
        False,
    )
    assert {name: group.trained for name, group in found.parameters.items()} == {
        "vision": 41_920,
        "language": 0,
        "expert": 0,
        "adapters": 64_512,
        "projections": 12_512,
    }
    assert found.parameters["language"].dtypes == ["bfloat16"]
    assert found.parameters["language"].bytes == 2 * 205_376
    assert found.findings == []


def test_newest_whole_step_is_described(tmp_path: Path) -> None:
    for step, value in ((5, 1.0), (20, 2.0), (100, 3.0)):
        write_step(
            tmp_path / str(step),
            {"action_in_proj/bias": np.full(4, value, np.float32)},
            ["action_in_proj/bias"],
        )
    (tmp_path / "100/train_state/_METADATA").unlink()
    found = inspect(tmp_path, deep=True)
    assert [(step.step, step.complete) for step in found.steps] == [(5, True), (20, True), (100, False)]
    assert found.step == 20
    assert found.parameters["projections"].norm == pytest.approx(4.0)


def test_lora_that_trains_everything_is_a_finding(tmp_path: Path) -> None:
    # The report's mistake: adapters on PaliGemma alone, and no filter, so that every parameter is trained.
    params = shapes_of(paligemma=16, expert=None)
    write_step(tmp_path / "15", params, list(params), ema=True)
    found = inspect(tmp_path)
    assert found.steps[0].complete
    assert set(found.lora.rank) == {"PaliGemma attention", "PaliGemma feed-forward"}
    assert found.parameters_trained == found.parameters_total
    assert [finding.split(":")[0] for finding in found.findings] == ["lora-trains-everything"]


def test_adapters_on_one_expert_beside_the_trained_other_are_no_finding(tmp_path: Path) -> None:
    params = shapes_of(paligemma=None, expert=8)
    trained = [path for path in params if group_of(path) != "expert"]
    write_step(tmp_path / "1", params, trained)
    found = inspect(tmp_path)
    assert found.lora.rank == {"action expert attention": 8, "action expert feed-forward": 8}
    assert found.findings == []
    write_step(tmp_path / "2", params, [*trained, "PaliGemma/llm/layers/attn/q_einsum_1/w"])
    assert inspect(tmp_path).findings[0].startswith("lora-trains-everything")


def test_lora_is_never_read_from_file_names(tmp_path: Path) -> None:
    root = openpi_checkpoint("full", tmp_path / "gemma_2b_lora")
    (root / str(STEP["full"]) / "params" / "lora_a").write_text("decoy")
    assert inspect(root).lora.present is False


def test_ranks_that_differ_are_listed_leaf_by_leaf(tmp_path: Path) -> None:
    attn = "PaliGemma/llm/layers/attn"
    pair = {"q_einsum": 4, "kv_einsum": 8}
    params = {f"{attn}/{name}/lora_a": ((2, 16, rank), "float32") for name, rank in pair.items()}
    params |= {f"{attn}/{name}/lora_b": ((2, rank, 16), "float32") for name, rank in pair.items()}
    write_step(tmp_path / "1", params)
    assert inspect(tmp_path).lora.rank == {f"{attn}/{name}": rank for name, rank in pair.items()}


def test_half_an_adapter_is_a_finding(tmp_path: Path) -> None:
    write_step(tmp_path / "1", {"PaliGemma/llm/layers/attn/q_einsum/lora_a": ((2, 16, 4), "float32")})
    assert "has no lora_b" in inspect(tmp_path).findings[0]


def test_real_size_by_metadata(tmp_path: Path) -> None:
    # 42 GB of declared arrays without any data: shapes come from the zarr headers alone.
    shapes = parameter_shapes(load_recipe("pi05_libero").model)
    write_step(
        tmp_path / "1000",
        {path: (shape, "float32") for path, shape in shapes.items()},
        list(shapes),
        ema=True,
    )
    found = inspect(tmp_path)
    assert (found.steps[0].complete, found.parameters_total, found.parameters_trained) == (
        True,
        3_353_433_872,
        3_353_433_872,
    )
    assert found.parameters["vision"].bytes == 4 * found.parameters["vision"].parameters
    assert found.steps[0].bytes < 2**20


def test_released_weights_alone_are_whole_and_need_a_recipe_to_tell_who_was_trained(tmp_path: Path) -> None:
    write_step(tmp_path / "pi05_base", shapes_of(paligemma=16, expert=32))
    found = inspect(tmp_path / "pi05_base")
    assert (found.steps[0].step, found.steps[0].complete, found.parameters_trained, found.ema) == (
        None,
        True,
        None,
        None,
    )
    assert {"step", "parameters_trained", "ema"} <= set(found.unknown)
    assert inspect(tmp_path / "pi05_base" / "params").parameters_total == found.parameters_total
    smoke, lora = load_recipe("smoke"), load_recipe("pi05_libero_lora")
    recipe = Recipe.model_validate(
        lora.model_dump()
        | {
            "model": (
                smoke.model.model_dump()
                | {"paligemma": {"variant": "dummy", "lora": {"rank": 16, "alpha": 16}}}
            )
        }
    )
    trained = inspect(tmp_path / "pi05_base", recipe=recipe).parameters
    assert (trained["adapters"].trained, trained["language"].trained) == (trained["adapters"].parameters, 0)


def test_our_own_checkpoint_in_a_run(tmp_path: Path) -> None:
    import jax

    from harness.checkpoint.store import Store
    from harness.train.snapshot import save
    from harness.train.state import abstract_state

    smoke = load_recipe("smoke").model_dump()
    smoke["model"]["paligemma"]["lora"] = {"rank": 2, "alpha": 2}
    smoke["train"] |= {"trained": "lora", "ema_decay": 0.9}
    recipe = Recipe.model_validate(smoke)
    run = tmp_path / "smoke-001"
    store = Store(run / "checkpoints", keep_every_steps=10)
    state = jax.tree.map(
        lambda leaf: jax.numpy.asarray(np.ones(leaf.shape, leaf.dtype)), abstract_state(recipe)
    )
    save(
        store,
        state,
        step=10,
        norm_stats_json="{}",
        asset_id="sample",
        record={"recipe": recipe.model_dump(mode="json")},
    )
    store.close()
    (run / "manifest.json").write_text("{}")
    trained = sum(leaf.size for leaf in state.trained.values())
    for path in (run, run / "checkpoints", run / "checkpoints" / "10"):
        found = inspect(path, deep=True)
        assert (found.layout, found.step, found.partial, found.findings) == ("harness", 10, False, [])
        assert found.steps[0].complete, found.steps[0].missing
        assert found.lora.rank == {"PaliGemma attention": 2, "PaliGemma feed-forward": 2}
        assert (found.parameters_trained, found.ema, found.non_finite) == (trained, True, 0)
    (run / "checkpoints/10/harness/record.json").unlink()
    assert inspect(run).steps[0].missing == ["harness/record.json"]


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda _: None, "checkpoint-missing"),
        (lambda path: path.write_bytes(b"\x00\xff" * 100), "not-a-checkpoint"),
        (lambda path: path.mkdir(), "checkpoint-empty"),
        (lambda path: (path / "notes").mkdir(parents=True), "not-a-checkpoint"),
        (lambda path: (path / "checkpoints").mkdir(parents=True), "checkpoint-empty"),
        (lambda path: path.symlink_to(path.parent / "nowhere"), "checkpoint-missing"),
        (lambda path: path.symlink_to(path), "checkpoint-unreadable"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, make: Any, code: str) -> None:
    make(tmp_path / "given")
    with pytest.raises(HarnessError) as caught:
        inspect(tmp_path / "given")
    assert caught.value.code == code
    assert caught.value.fix


def test_directory_above_is_refused_with_the_one_that_was_meant(tmp_path: Path) -> None:
    write_step(tmp_path / "checkpoints/pi05_libero/mine/500", {"action_in_proj/bias": np.ones(2, np.float32)})
    for given in (tmp_path / "checkpoints", tmp_path / "checkpoints/pi05_libero"):
        with pytest.raises(HarnessError) as caught:
            inspect(given)
        assert str(tmp_path / "checkpoints/pi05_libero/mine") in caught.value.fix


def test_starts_without_jax_and_orbax(tmp_path: Path) -> None:
    root = openpi_checkpoint("full", tmp_path)
    code = (
        "import sys; from pathlib import Path; from harness.checkpoint.inspect import inspect;"
        " inspect(Path(sys.argv[1]), deep=True); "
    )
    code += "sys.exit(bool({'jax', 'orbax', 'flax'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
        timeout=60,
    )
    assert done.returncode == 0
