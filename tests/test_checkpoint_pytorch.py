"""Tests that checkpoints of PyTorch trainers are recognized wherever a path points into them.

The message names their contents and the next steps.
"""

from __future__ import annotations

import json
import os
import shlex
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.checkpoint.inspect import inspect
from harness.checkpoint.pytorch import find_pytorch, policy_directory, weights_location
from harness.checkpoint.safetensors import read_header
from harness.errors import HarnessError
from harness.received.files import UnsafeFile
from tests.support.item_writer import write_step

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 1834012\n"
F32 = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def write_file(path: Path, header: Any, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def tensors(path: Path, names: tuple[str, ...] = ("a", "b")) -> Path:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for number, name in enumerate(names):
        header[name] = {"dtype": "BF16", "shape": [3, 4], "data_offsets": [24 * number, 24 * number + 24]}
    return write_file(path, header, bytes(24 * len(names)))


def lerobot(root: Path) -> Path:
    step = root / "checkpoints/005000"
    tensors(step / "pretrained_model/model.safetensors")
    (step / "pretrained_model/config.json").write_text('{"type": "pi05", "n_obs_steps": 1}')
    (step / "training_state").mkdir()
    (root / "checkpoints/last").symlink_to("005000")
    return root


def openpi(root: Path) -> Path:
    tensors(root / "2000/model.safetensors")
    (root / "2000/optimizer.pt").write_bytes(b"PK")
    (root / "2000/assets").mkdir()
    return root


def refused(path: Path) -> HarnessError:
    with pytest.raises(HarnessError) as caught:
        inspect(path)
    assert caught.value.code == "pytorch-checkpoint"
    return caught.value


@pytest.mark.parametrize(
    "below",
    ["", "checkpoints", "checkpoints/005000", "checkpoints/last", "checkpoints/005000/pretrained_model"],
)
def test_lerobots_are_named_from_every_level(tmp_path: Path, below: str) -> None:
    error = refused(lerobot(tmp_path / "run") / below)
    assert "LeRobot pi05" in error.what
    assert "2 tensors, 24 parameters, bfloat16" in error.what
    assert "model.safetensors" in str(error.need)


@pytest.mark.parametrize("below", ["", "2000", "2000/model.safetensors"])
def test_openpis_are_named_from_every_level(tmp_path: Path, below: str) -> None:
    error = refused(openpi(tmp_path / "exp") / below)
    assert "openpi's PyTorch trainer" in error.what
    assert "2 tensors" in error.what


def test_shards_are_counted_together(tmp_path: Path) -> None:
    for number, name in enumerate("ab", 1):
        tensors(tmp_path / f"model-0000{number}-of-00002.safetensors", (name,))
    assert "2 tensors, 24 parameters" in refused(tmp_path).what


def test_peft_adapters_are_named(tmp_path: Path) -> None:
    tensors(tmp_path / "adapter_model.safetensors")
    assert "PEFT adapters" in refused(tmp_path).what


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "last.ckpt", "weights.pth"])
def test_a_pickle_is_named_and_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").mkdir()
    location = tmp_path / "x" / name
    os.mkfifo(location) if name == "model.pt" else location.write_bytes(b"\x80\x02cos\nsystem\n.")
    if name == "model.pt":
        with pytest.raises(HarnessError) as caught:
            inspect(tmp_path / "x")
        assert caught.value.code == "not-a-checkpoint"
        return
    assert "not opened" in refused(tmp_path / "x").what
    assert "not opened" in refused(location).what


def test_a_checkpoint_of_ours_beside_a_pytorch_file_stays_one(tmp_path: Path) -> None:
    write_step(tmp_path / "3", {"action_in_proj/bias": np.ones(2, np.float32)})
    tensors(tmp_path / "3/model.safetensors")
    tensors(tmp_path / "4/model.safetensors")
    assert inspect(tmp_path).step == 3


def test_nothing_of_them_is_deleted(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from harness.cli import app

    openpi(tmp_path / "exp")
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "exp"), "--clean"])
    assert isinstance(result.exception, HarnessError)
    assert sorted(tmp_path.rglob("*")) == before


def _bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _sparse(path: Path) -> Path:
    path.write_bytes(struct.pack("<Q", 2**40))
    os.truncate(path, 2**41)
    return path


DAMAGED: dict[str, Callable[[Path], Path]] = {
    "a length of 1 TB in a sparse file": _sparse,
    "no length": lambda path: _bytes(path, b"\x01"),
    "a length beyond the file": lambda path: _bytes(path, struct.pack("<Q", 2**63) + b"{}"),
    "no JSON": lambda path: write_file(path, b"{x", b""),
    "deep JSON": lambda path: write_file(path, b"[" * 100_000, b""),
    "a list": lambda path: write_file(path, [], b""),
    "cut off": lambda path: write_file(path, {"a": F32}, bytes(20)),
    "more bytes": lambda path: write_file(path, {"a": F32}, bytes(30)),
    "overlap": lambda path: write_file(path, {"a": F32, "b": F32}, bytes(24)),
    "gap": lambda path: write_file(path, {"a": F32 | {"data_offsets": [4, 28]}}, bytes(28)),
    "backwards": lambda path: write_file(path, {"a": F32 | {"data_offsets": [24, 0]}}, bytes(24)),
    "negative": lambda path: write_file(path, {"a": F32 | {"shape": [-2, -3]}}, bytes(24)),
    "huge": lambda path: write_file(path, {"a": F32 | {"shape": [2**62, 2**62]}}, bytes(24)),
    "another size": lambda path: write_file(path, {"a": F32 | {"shape": [2, 4]}}, bytes(24)),
    "no dtype": lambda path: write_file(path, {"a": F32 | {"dtype": "F33"}}, bytes(24)),
    "dtype of another type": lambda path: write_file(path, {"a": F32 | {"dtype": []}}, bytes(24)),
    "no tensor": lambda path: write_file(path, {"a": 5}, b""),
    "one offset": lambda path: write_file(path, {"a": F32 | {"data_offsets": [0]}}, bytes(24)),
    "fractions": lambda path: write_file(path, {"a": F32 | {"shape": [2.0, 3]}}, bytes(24)),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_header_is_said(tmp_path: Path, kind: str) -> None:
    path = DAMAGED[kind](tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"\w"):
        read_header(path, tmp_path)
    assert "is damaged" in str(refused(tmp_path).got)
    assert refused(tmp_path).what.endswith("(safetensors): none of their tensors can be read")


def test_an_empty_file_of_no_tensors_is_one(tmp_path: Path) -> None:
    assert read_header(write_file(tmp_path / "x.safetensors", {}, b""), tmp_path) == []


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors", "model.pt"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_pointer_of_git_lfs_is_named_as_one(tmp_path: Path, name: str, *, whole: bool) -> None:
    step = tmp_path / "a run"
    file = _bytes(tensors(step / name), POINTER)
    with pytest.raises(HarnessError) as caught:
        inspect(file if whole else step)
    assert caught.value.code == "git-lfs-pointer"
    assert shlex.split(str(caught.value.fix)) == ["git", "-C", str(step), "lfs", "pull"]


def test_a_link_out_is_not_read(tmp_path: Path) -> None:
    secret = tensors(tmp_path / "elsewhere/secret.safetensors", ("secret",))
    (tmp_path / "step").mkdir()
    (tmp_path / "step/model.safetensors").symlink_to(secret)
    with pytest.raises(UnsafeFile):
        read_header(tmp_path / "step/model.safetensors", tmp_path / "step")
    assert "secret" not in refused(tmp_path / "step").what


def test_a_file_that_is_a_link_is_read_where_its_user_names_it(tmp_path: Path) -> None:
    """The hub cache calls the file itself by its hash, without a suffix: it is no pickle for that."""
    blob = tmp_path / "hub/blobs" / ("ab" * 32)
    tensors(blob, ("action_in_proj.bias", "b"))
    link = tmp_path / "hub/snapshots/0a1b/model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    own = tmp_path / "latest.safetensors"
    own.symlink_to(tensors(tmp_path / "elsewhere/model.safetensors", ("action_in_proj.bias", "b")))
    for path in (link, own):
        found = find_pytorch(path)
        assert found is not None
        assert (len(found.tensors), found.unread, found.pickles) == (2, [], False)
        location = weights_location(path)
        assert location is not None
        assert len(read_header(location, location.parent)) == 2
        assert inspect(path).tensors == 2


def test_adapters_in_a_step_of_lerobots_are_those_of_its_policy(tmp_path: Path) -> None:
    policy = tmp_path / "005000/pretrained_model"
    policy.mkdir(parents=True)
    assert policy_directory(tmp_path / "005000") == tmp_path / "005000"
    (policy / "adapter_config.json").write_text("{}")
    assert policy_directory(tmp_path / "005000") == policy_directory(policy) == policy
