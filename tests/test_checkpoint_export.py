from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from harness.checkpoint import merge, whole
from harness.checkpoint.export import chunk_shape, export_openpi, save_params_only, write_params
from harness.checkpoint.store import Store
from harness.checkpoint.weights import load_params
from harness.errors import HarnessError
from harness.recipe.parameters import is_trained, parameter_shapes
from harness.recipe.schema import Expert, Lora, Model
from tests.support.openpi_checkpoints import openpi_checkpoint

STATS = '{"norm_stats": {}}'


def _model(alpha=8.0, rank=4, expert_rank=2):
    return Model(
        paligemma=Expert(variant="dummy", lora=Lora(rank=rank, alpha=alpha)),
        action_expert=Expert(variant="dummy", lora=Lora(rank=expert_rank, alpha=6)),
        vision="mu/14",
        vocab_size=512,
        prompt_tokens=16,
    )


def _without_adapters(model):
    return model.model_copy(
        update={"paligemma": Expert(variant="dummy"), "action_expert": Expert(variant="dummy")}
    )


def _params(model, seed=0):
    rng = np.random.RandomState(seed)
    frozen = {path: not is_trained(path, model, "lora") for path in parameter_shapes(model)}
    return {
        path: jnp.asarray(rng.standard_normal(shape), jnp.bfloat16 if frozen[path] else jnp.float32)
        for path, shape in parameter_shapes(model).items()
    }


def _structs(shapes):
    return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}


@pytest.fixture
def step(tmp_path):
    """A step of a LoRA run, as the trainer saves it, with its parameters."""
    params = _params(_model())
    store = Store(tmp_path / "run", keep_every_steps=1)
    store.save(
        5,
        params=params,
        train_state={"step": jnp.int32(5), "params": {}, "opt_state": ()},
        norm_stats_json=STATS,
        asset_id="lab/libero",
        record={},
    )
    store.close()
    return tmp_path / "run/5", params


def test_each_merged_weight_is_the_nearest_number_to_base_plus_scaled_product(step, tmp_path):
    source, params = step
    model = _model()
    merged = export_openpi(source, tmp_path / "out", model=model)
    loaded = load_params(tmp_path / "out", _structs(parameter_shapes(_without_adapters(model))))

    def expected(w, a, b, scale):
        product = np.einsum("...ir,...ro->...io", np.asarray(a, np.float64), np.asarray(b, np.float64))
        return (np.asarray(w, np.float64) + scale * product).astype(np.float32)

    layers = "PaliGemma/llm/layers"
    for name in ("q_einsum", "kv_einsum", "attn_vec_einsum"):
        for suffix, scale in (("", 2.0), ("_1", 3.0)):
            path = f"{layers}/attn/{name}{suffix}"
            w, a, b = (params[f"{path}/{part}"] for part in ("w", "lora_a", "lora_b"))
            # attn_vec_einsum contracts heads, and so does each factor: every head of A meets the sum over the
            # heads of B.
            want = expected(
                w,
                a,
                np.asarray(b, np.float64).sum(axis=1, keepdims=True) if name == "attn_vec_einsum" else b,
                scale,
            )
            np.testing.assert_array_equal(loaded.params[f"{path}/w"], want)
    for name in ("gating_einsum", "linear"):
        for suffix, scale in (("", 2.0), ("_1", 3.0)):
            path = f"{layers}/mlp{suffix}/{name}"
            want = expected(params[path], params[f"{path}_lora_a"], params[f"{path}_lora_b"], scale)
            np.testing.assert_array_equal(loaded.params[path], want)
    assert len(merged) == 10
    for path in parameter_shapes(_without_adapters(model)):
        if path not in merged:
            np.testing.assert_array_equal(loaded.params[path], params[path].astype(jnp.float32))
    assert (tmp_path / "out/assets/lab/libero/norm_stats.json").read_text() == STATS


def test_adapters_whose_b_is_zero_change_nothing(tmp_path):
    model, params = _model(), _params(_model())
    params = {path: jnp.zeros_like(x) if path.endswith("lora_b") else x for path, x in params.items()}
    write_params(tmp_path / "in/params", ((path, np.asarray(x)) for path, x in params.items()))
    merged = export_openpi(tmp_path / "in", tmp_path / "out", model=model)
    loaded = load_params(tmp_path / "out", _structs(parameter_shapes(_without_adapters(model))))
    for path in merged:
        np.testing.assert_array_equal(loaded.params[path], params[path].astype(jnp.float32))


def test_golden_lora_checkpoint_exports(tmp_path):
    model = _model(alpha=4).model_copy(
        update={"action_expert": Expert(variant="dummy", lora=Lora(rank=4, alpha=4))}
    )
    export_openpi(openpi_checkpoint("lora", tmp_path) / "2", tmp_path / "out", model=model)
    assert not load_params(tmp_path / "out", _structs(parameter_shapes(_without_adapters(model)))).initialized
    assert list((tmp_path / "out/assets").rglob("norm_stats.json"))


def test_what_is_written_leaf_by_leaf_is_read_by_orbax(tmp_path):
    arrays = {
        "a/b/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
        "a/scale": np.asarray(jnp.ones((5,), jnp.bfloat16)),
        "c": np.float32(3).reshape(()),
    }
    write_params(tmp_path / "params", arrays.items())
    with ocp.PyTreeCheckpointer() as reader:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        item = {"params": reader.metadata(tmp_path / "params").item_metadata.tree["params"]}
        arguments = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=sharding), item)
        tree = reader.restore(
            tmp_path / "params", args=ocp.args.PyTreeRestore(item=item, restore_args=arguments)
        )["params"]
    for path, node in (
        ("a/b/kernel", tree["a"]["b"]["kernel"]),
        ("a/scale", tree["a"]["scale"]),
        ("c", tree["c"]),
    ):
        assert node["value"].dtype == arrays[path].dtype
        np.testing.assert_array_equal(node["value"], arrays[path])


def _trained_only(step, tmp_path):
    params, model = step[1], _model()
    base = {path: x for path, x in params.items() if "lora" not in path}
    write_params(
        tmp_path / "base/params", ((path, np.asarray(x.astype(jnp.float32))) for path, x in base.items())
    )
    trained = {path: x for path, x in params.items() if is_trained(path, model, "lora")}
    return save_params_only(
        tmp_path / "trained",
        trained,
        base=str(tmp_path / "base"),
        norm_stats_json=STATS,
        asset_id="lab/libero",
    )


def test_trained_parameters_alone_load_on_top_of_their_base(step, tmp_path):
    destination = _trained_only(step, tmp_path)
    size = sum(path.stat().st_size for path in (destination / "params").rglob("*") if path.is_file())
    whole = sum(path.stat().st_size for path in (tmp_path / "run/5/params").rglob("*") if path.is_file())
    assert size < whole
    loaded = load_params(destination, _structs(parameter_shapes(_model())))
    for path, array in step[1].items():
        np.testing.assert_array_equal(loaded.params[path], array.astype(jnp.float32))
    assert loaded.sources == [destination / "params", tmp_path / "base/params"]


def test_trained_parameters_alone_export_as_the_whole_step_does(step, tmp_path):
    destination = _trained_only(step, tmp_path)
    export_openpi(destination, tmp_path / "one", model=_model())
    export_openpi(step[0], tmp_path / "two", model=_model())
    expected = _structs(parameter_shapes(_without_adapters(_model())))
    one, two = load_params(tmp_path / "one", expected), load_params(tmp_path / "two", expected)
    for path in expected:
        np.testing.assert_array_equal(one.params[path], two.params[path])


def test_a_base_with_other_bytes_is_refused_and_a_moved_one_can_be_named(step, tmp_path):
    destination = _trained_only(step, tmp_path)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(HarnessError) as caught:
        export_openpi(destination, tmp_path / "out", model=_model())
    assert caught.value.code == "weights-missing"
    export_openpi(destination, tmp_path / "out", model=_model(), base=tmp_path / "moved")
    (tmp_path / "moved/params/extra").write_text("x")
    with pytest.raises(HarnessError) as caught:
        export_openpi(destination, tmp_path / "out2", model=_model(), base=tmp_path / "moved")
    assert caught.value.code == "weights-base-differs"


def test_refusals_leave_nothing_behind(step, tmp_path, monkeypatch):
    source, _ = step
    for code, call in {
        "weights-mismatch": lambda: export_openpi(source, tmp_path / "out", model=_model(rank=3)),
        "export-exists": lambda: export_openpi(source, source, model=_model()),
    }.items():
        with pytest.raises(HarnessError) as caught:
            call()
        assert caught.value.code == code
    monkeypatch.setattr(merge, "is_finite", lambda _: False)
    with pytest.raises(HarnessError) as caught:
        export_openpi(source, tmp_path / "out", model=_model())
    assert caught.value.code == "weights-not-finite"
    monkeypatch.setattr(whole.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(HarnessError) as caught:
        export_openpi(source, tmp_path / "out", model=_model())
    assert caught.value.code == "disk-full"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("shape", "chunk"),
    [
        ((), ()),
        ((5,), (5,)),
        ((18, 2, 2048, 16_384), (1, 1, 1024, 16_384)),
        ((257_152, 2048), (8192, 2048)),
        ((3, 10**9), (1, 2**24)),
        ((6, 2**22), (4, 2**22)),
    ],
)
def test_chunks_are_the_largest_whole_rows_in_64_mib(shape, chunk):
    assert chunk_shape(shape, 4) == chunk
