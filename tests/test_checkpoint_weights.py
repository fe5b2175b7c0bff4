import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from harness.checkpoint import chunks
from harness.checkpoint.paths import nested
from harness.checkpoint.source import find_params
from harness.checkpoint.weights import directory_sha256, is_finite, load_params
from harness.errors import HarnessError
from harness.recipe.parameters import is_trained, parameter_shapes
from harness.recipe.schema import Expert, Lora, Model
from tests.support.litter import lay
from tests.support.openpi_checkpoints import STEP, openpi_checkpoint


def _model(kind):
    lora = Lora(rank=4, alpha=4) if kind == "lora" else None
    expert = Expert(variant="dummy", lora=lora)
    return Model(paligemma=expert, action_expert=expert, vision="mu/14", vocab_size=512, prompt_tokens=16)


def _structs(shapes, dtype=jnp.float32):
    return {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes.items()}


def _start_value(path, shape):
    """The rule by which the golden checkpoints' parameters were made, before training."""
    seed = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "little")
    offset = 1 if path.startswith("PaliGemma/img") and path.endswith("/scale") else 0
    return (0.05 * np.random.RandomState(seed).standard_normal(shape).astype(np.float32) + offset).astype(
        np.float32
    )


def _write(directory, arrays, **save):
    """A `params` directory as openpi has it, written by Orbax alone."""
    tree = {"params": nested(arrays)}
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(
            directory,
            args=ocp.args.PyTreeSave(tree, save_args=jax.tree.map(lambda _: ocp.SaveArgs(**save), tree)),
        )
    return directory


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_golden_checkpoints_load_and_equal_orbaxs_reading(tmp_path, kind):
    step = openpi_checkpoint(kind, tmp_path) / str(STEP[kind])
    shapes = parameter_shapes(_model(kind))
    loaded = load_params(step, _structs(shapes))
    assert loaded.initialized == []
    assert set(loaded.params) == set(loaded.restored) == set(shapes)
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore(step / "params")["params"]
    for path, array in loaded.params.items():
        node = tree
        for part in path.split("/"):
            node = node[part]
        assert array.dtype == jnp.float32
        np.testing.assert_array_equal(array, np.asarray(node["value"]).astype(np.float32))


def test_frozen_golden_parameters_are_those_of_the_rule(tmp_path):
    step = openpi_checkpoint("lora", tmp_path) / "2"
    model = _model("lora")
    frozen = {
        path: shape for path, shape in parameter_shapes(model).items() if not is_trained(path, model, "lora")
    }
    assert frozen
    loaded = load_params(step, _structs(parameter_shapes(model), jnp.bfloat16))
    for path, shape in frozen.items():
        np.testing.assert_array_equal(loaded.params[path], _start_value(path, shape).astype(jnp.bfloat16))


def test_ema_parameters_of_the_full_golden_are_near_the_rule(tmp_path):
    shapes = parameter_shapes(_model("full"))
    loaded = load_params(openpi_checkpoint("full", tmp_path) / "4/params", _structs(shapes))
    assert (
        max(
            float(np.abs(loaded.params[path] - _start_value(path, shape)).max())
            for path, shape in shapes.items()
        )
        < 1e-3
    )


def test_adapters_missing_in_a_base_checkpoint_are_initialized(tmp_path):
    source = openpi_checkpoint("full", tmp_path) / "4"
    shapes = parameter_shapes(_model("lora"))
    loaded = load_params(
        source, _structs(shapes), initialize=lambda _, struct: jnp.full(struct.shape, 7, struct.dtype)
    )
    assert loaded.initialized == [path for path in shapes if "lora" in path]
    assert list(loaded.params) == list(shapes)
    assert all((loaded.params[path] == 7).all() for path in loaded.initialized)


def test_everything_that_differs_is_listed_at_once(tmp_path):
    source = openpi_checkpoint("full", tmp_path) / "4"
    shapes = parameter_shapes(_model("full"))
    shapes["new/kernel"] = (3,)
    shapes["action_in_proj/bias"] = (65,)
    del shapes["time_mlp_in/bias"]
    with pytest.raises(HarnessError) as caught:
        load_params(
            source, _structs(shapes), initialize=lambda _, struct: jnp.zeros(struct.shape, struct.dtype)
        )
    assert caught.value.code == "weights-mismatch"
    assert caught.value.got.startswith("3 ")
    for text in (
        "new/kernel is missing",
        "time_mlp_in/bias is unexpected",
        "action_in_proj/bias has shape (64,), not (65,)",
    ):
        assert text in caught.value.what


def test_lora_weights_in_a_model_without_adapters_are_refused(tmp_path):
    source = openpi_checkpoint("lora", tmp_path) / "2"
    with pytest.raises(HarnessError) as caught:
        load_params(source, _structs(parameter_shapes(_model("full"))))
    assert caught.value.code == "weights-are-adapters"
    assert caught.value.fix.startswith(f"harness export {source} ")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parameters_that_are_not_finite_are_named(tmp_path, bad, dtype):
    arrays = {
        "a/w": jnp.ones((3, 4), dtype),
        "b/w": jnp.ones((5,), dtype).at[2].set(bad),
        "c/w": jnp.ones((2,), dtype),
    }
    with pytest.raises(HarnessError) as caught:
        load_params(
            _write(tmp_path / "params", arrays), _structs({path: x.shape for path, x in arrays.items()})
        )
    assert caught.value.code == "weights-not-finite"
    assert "b/w" in caught.value.what
    assert "a/w" not in caught.value.what


def test_is_finite_looks_at_every_block():
    array = np.ones(2**23 + 5, np.float32)
    assert is_finite(array)
    array[-1] = np.nan
    assert not is_finite(array)
    assert is_finite(np.ones((), np.float32))
    assert is_finite(np.arange(3))


def test_dtype_and_sharding_are_those_asked_for(tmp_path):
    arrays = {
        "a/w": jnp.asarray(np.random.RandomState(0).standard_normal((64, 33)), jnp.float32),
        "b/w": jnp.ones((8,), jnp.bfloat16),
    }
    sharding = NamedSharding(jax.make_mesh((1,), ("fsdp",)), PartitionSpec("fsdp"))
    expected = {
        "a/w": jax.ShapeDtypeStruct((64, 33), jnp.bfloat16, sharding=sharding),
        "b/w": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding),
    }
    loaded = load_params(_write(tmp_path / "params", arrays), expected)
    for path, struct in expected.items():
        assert loaded.params[path].sharding == sharding
        np.testing.assert_array_equal(loaded.params[path], arrays[path].astype(struct.dtype))


@pytest.mark.parametrize("save", [{}, {"chunk_byte_size": 20_000}], ids=["one chunk", "chunk grid"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("piece", "extent"), [(2048, 700), (50_000, 2**24), (2**26, 100_001)])
def test_large_leaves_are_read_in_pieces_to_the_same_values(
    tmp_path, monkeypatch, save, dtype, piece, extent
):
    monkeypatch.setattr(chunks, "LARGE_BYTES", 1000)
    monkeypatch.setattr(chunks, "PIECE_BYTES", piece)
    monkeypatch.setattr(chunks, "_RANGE_BYTES", extent)
    rng = np.random.RandomState(0)
    shapes = [(7, 3, 40, 11), (90_000,), (1, 600), (20, 16)]
    arrays = {
        f"{i}/w": jnp.asarray(rng.standard_normal(shape), jnp.float32) for i, shape in enumerate(shapes)
    }
    expected = {path: jax.ShapeDtypeStruct(x.shape, dtype) for path, x in arrays.items()}
    loaded = load_params(_write(tmp_path / "params", arrays, **save), expected)
    for path, array in arrays.items():
        np.testing.assert_array_equal(loaded.params[path], array.astype(dtype))


def test_data_of_a_large_leaf_that_ends_early_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "LARGE_BYTES", 1000)
    directory = _write(
        tmp_path / "params",
        {"a/w": jnp.asarray(np.random.RandomState(0).standard_normal(100_000), jnp.float32)},
    )
    for path in directory.glob("ocdbt.process_0/d/*"):
        if path.stat().st_size > 100_000:
            path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(HarnessError) as caught:
        load_params(directory, {"a/w": jax.ShapeDtypeStruct((100_000,), jnp.float32)})
    assert caught.value.code == "checkpoint-damaged"


def test_trees_without_the_value_suffix_load_too(tmp_path):
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(tmp_path / "params", {"params": {"a": {"kernel": np.arange(4.0, dtype=np.float32)}}})
    loaded = load_params(tmp_path / "params", {"a/kernel": jax.ShapeDtypeStruct((4,), jnp.float32)})
    np.testing.assert_array_equal(loaded.params["a/kernel"], [0, 1, 2, 3])


def test_checkpoints_that_are_not_in_one_database_load_too(tmp_path):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as writer:
        writer.save(
            tmp_path / "params",
            args=ocp.args.PyTreeSave({"params": nested({"a/w": np.arange(4.0, dtype=np.float32)})}),
        )
    loaded = load_params(tmp_path / "params", {"a/w": jax.ShapeDtypeStruct((4,), jnp.float32)})
    np.testing.assert_array_equal(loaded.params["a/w"], [0, 1, 2, 3])


def test_which_directory_is_meant(tmp_path):
    root = openpi_checkpoint("lora", tmp_path)
    assert find_params(root / "2") == root / "2/params" == find_params(root / "2/params")
    for path, code in {
        root: "weights-step-needed",
        root / "6.orbax-checkpoint-tmp-0": "checkpoint-interrupted",
        root / "6.orbax-checkpoint-tmp-0/params.orbax-checkpoint-tmp-2": "checkpoint-interrupted",
        root / "2/assets": "weights-not-a-checkpoint",
        root / "9": "weights-missing",
    }.items():
        with pytest.raises(HarnessError) as caught:
            find_params(path)
        assert caught.value.code == code
    (root / "6.orbax-checkpoint-tmp-0").rename(root / "6")
    with pytest.raises(HarnessError) as caught:
        find_params(root / "6")
    assert caught.value.code == "checkpoint-interrupted"


@pytest.mark.parametrize(
    "content", ["", "not json", "[]", '{"tree_metadata": {"x": 1}}', '{"tree_metadata": null}']
)
def test_metadata_that_is_not_orbaxs(tmp_path, content):
    (tmp_path / "params").mkdir()
    (tmp_path / "params/_METADATA").write_text(content)
    with pytest.raises(HarnessError) as caught:
        load_params(tmp_path, {"a/w": jax.ShapeDtypeStruct((4,), jnp.float32)})
    assert caught.value.code == "checkpoint-damaged"


@pytest.mark.parametrize("gone", ["manifest.ocdbt", "d", "ocdbt.process_0"])
def test_a_copy_that_lacks_files(tmp_path, gone):
    step = openpi_checkpoint("lora", tmp_path) / "2"
    (step / "params" / gone).rename(tmp_path / "gone")
    with pytest.raises(HarnessError) as caught:
        load_params(step, _structs(parameter_shapes(_model("lora"))))
    assert caught.value.code == "checkpoint-damaged"


def test_progress_reaches_the_total(tmp_path):
    arrays = {"a/w": jnp.ones((10, 10)), "b/w": jnp.ones((5,), jnp.bfloat16)}
    directory, seen = _write(tmp_path / "params", arrays), []
    loaded = load_params(
        directory,
        _structs({path: x.shape for path, x in arrays.items()}),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (410, 410)
    assert loaded.leaves == {"a/w": {"bytes": 400}, "b/w": {"bytes": 10}}
    assert loaded.sources == [directory]


def test_the_hash_of_a_directory_is_of_names_and_contents(tmp_path):
    def made(name, **files):
        (tmp_path / name / "d").mkdir(parents=True)
        for file, text in files.items():
            (tmp_path / name / "d" / file).write_text(text)
        return directory_sha256(tmp_path / name)

    one = made("one", x="1", y="2")
    assert made("same", y="2", x="1") == one
    assert made("content", x="1", y="3") != one
    assert made("names", x="1", z="2") != one
    lay(tmp_path / "one")
    assert directory_sha256(tmp_path / "one") == one


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.bool_, jnp.complex64])
def test_codes_are_no_weights(tmp_path, dtype):
    arrays = {"a/w": jnp.ones((3, 4), jnp.float32), "b/w": jnp.ones((5,), dtype)}
    with pytest.raises(HarnessError, match=r"b/w is (int8|bool|complex64)") as caught:
        load_params(
            _write(tmp_path / "params", arrays),
            {path: jax.ShapeDtypeStruct(x.shape, jnp.float32) for path, x in arrays.items()},
        )
    assert caught.value.code == "weights-mismatch"
    assert "a/w" not in caught.value.what
