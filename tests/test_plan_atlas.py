"""Tests the atlas: its answers, its bounds, its refusals.

The shipped atlas must belong to this version of the step.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib import metadata, resources
from typing import Any

import pytest

from harness.artifacts import Levers
from harness.plan import source as source_module
from harness.plan.atlas import ALLOWANCE, MAKE, Atlas, AtlasFile, Entry, shipped, step_key
from harness.plan.candidates import changed, changes_of, prompt_tokens
from harness.plan.memory import phase_bytes
from harness.plan.source import source_hash
from harness.recipe.load import load_recipe
from harness.units import MIB

LORA = load_recipe("pi05_libero_lora")
LEVERS = Levers(
    platform="cuda",
    microbatch=8,
    accumulation_steps=32,
    prompt_tokens=48,
    cameras=["base_0_rgb", "left_wrist_0_rgb"],
)


def entry(device: int, **levers: Any) -> Entry:
    return Entry(
        recipe=step_key(LORA),
        levers=LEVERS.model_copy(update=levers),
        bytes={"device": device, "temp": device // 2},
        fingerprint=str(device),
    )


def atlas_of(*entries: Entry, jaxlib: str | None = None, source: str | None = None) -> Atlas:
    return Atlas(
        [
            AtlasFile(
                jaxlib=jaxlib or metadata.version("jaxlib"),
                source=source or source_hash(),
                recipes={},
                entries=list(entries),
            )
        ]
    )


def allowed(device: int) -> int:
    return device + int(ALLOWANCE * (device // 2))


def test_an_entry_answers_its_own_question_with_the_allowance_for_other_cards() -> None:
    known = atlas_of(entry(1000)).look_up(LORA, LEVERS)
    assert known is not None
    assert (known.source, known.bytes["device"], known.program_sha256) == ("atlas", allowed(1000), "1000")


@pytest.mark.parametrize(
    "smaller",
    [
        {"microbatch": 4, "accumulation_steps": 64},
        {"microbatch": 4, "accumulation_steps": 2},
        {"prompt_tokens": 32},
        {"accumulation_steps": 4},
    ],
    ids=["microbatch", "microbatch and global batch", "prompt", "global batch"],
)
def test_an_entry_bounds_what_is_smaller_and_that_is_marked(smaller: dict[str, int]) -> None:
    known = atlas_of(entry(1000), entry(2000, microbatch=16, accumulation_steps=16)).look_up(
        LORA, LEVERS.model_copy(update=smaller)
    )
    assert known is not None
    assert (known.source, known.bytes["device"]) == ("interpolated", allowed(1000))


@pytest.mark.parametrize(
    "other",
    [
        {"microbatch": 16, "accumulation_steps": 16}, {"prompt_tokens": 64}, {"accumulation_steps": 33},
        {"accumulation_steps": 1}, {"remat": "none"},
        {"cameras": ["base_0_rgb"]}, {"host": ["moments"]}, {"compute_copy": True}, {"devices": 2},
        {"devices": 2, "fsdp": 2}, {"attention": "chunked"},
    ],
    ids=str,
)  # fmt: skip
def test_an_entry_says_nothing_of_what_is_larger_or_otherwise(other: dict[str, Any]) -> None:
    assert atlas_of(entry(1000)).look_up(LORA, LEVERS.model_copy(update=other)) is None
    assert atlas_of(entry(1000)).look_up(LORA, LEVERS, "load") is None


@pytest.mark.parametrize(
    "changes",
    [{"train.trained": "lora_frozen_vision"}, {"train.ema_decay": 0.9}, {"train.optimizer.moments": "int8"},
     {"train.frozen": "int8"}, {"data.augment": False},
     {"model.action_horizon": 50}, {"model.vision": "mu/14"}],
    ids=str,
)  # fmt: skip
def test_another_recipe_is_another_question(changes: dict[str, Any]) -> None:
    assert atlas_of(entry(1000)).look_up(changed(LORA, changes), LEVERS) is None


@pytest.mark.parametrize(
    "changes",
    [{"train.seed": 7}, {"train.steps": 10}, {"train.global_batch": 64}, {"data.dataset": "sample"}],
    ids=str,
)
def test_what_does_not_change_the_step_does_not_change_the_question(changes: dict[str, Any]) -> None:
    assert atlas_of(entry(1000)).look_up(changed(LORA, changes), LEVERS) is not None


@pytest.mark.parametrize("stamp", [{"jaxlib": "0.0.1"}, {"source": "of another step"}])
def test_entries_of_another_compiler_or_another_step_are_refused_with_the_command_that_mends_it(
    stamp: dict[str, str],
) -> None:
    stale = atlas_of(entry(1000), **stamp)
    assert stale.look_up(LORA, LEVERS) is None
    assert MAKE in stale.refused


def test_activations_are_what_grows_with_the_microbatch() -> None:
    larger = LEVERS.model_copy(update={"microbatch": 16, "accumulation_steps": 16})
    known = atlas_of(entry(1000), entry(1400, microbatch=16, accumulation_steps=16)).look_up(LORA, larger)
    assert known is not None
    assert known.activations == 800
    alone = atlas_of(entry(1000)).look_up(LORA, LEVERS)
    assert alone is not None
    assert alone.activations is None


def test_the_hash_of_the_step_sees_code_and_not_words() -> None:
    one = '"""Words."""\n# why\n\ndef f(x: int) -> int:\n    """More."""\n    return x + 1\n'
    same = "from a import b\n\ndef f(x: int) -> int:\n    # another why\n    return x + 1\n"
    other = "def f(x: int) -> int:\n    return x + 2\n"
    first, second, third = (
        source_module._code_lines(source, ast.parse(source)) for source in (one, same, other)
    )
    assert first == second != third
    text = 'x = """a\nb"""'
    assert source_module._code_lines(text, ast.parse(text)) == ['x = """a', 'b"""']


def test_the_hash_of_the_step_reads_the_modules_that_the_step_is_made_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    lines = source_module._code_lines
    monkeypatch.setattr(
        source_module, "_code_lines", lambda source, tree: read.append(source) or lines(source, tree)
    )
    source_hash()
    together = "\n".join(read)
    assert all(
        f"def {name}" in together
        for name in ("compile_step", "make_step", "optimizer", "augment", "parameter_shapes")
    )
    assert "class Pi05" in together
    assert "def iterate" not in together


def test_the_shipped_atlas_is_of_this_step_and_this_compiler() -> None:
    """When this fails, the step has changed: python benchmarks/atlas.py, which compares and compiles only
    what has become another program.
    """
    files = [
        file for file in (resources.files("harness.plan") / "atlas").iterdir() if file.name.endswith(".json")
    ]
    assert files
    assert shipped().refused == "", MAKE


def test_what_is_written_in_the_prompt_asks_for_the_same_step() -> None:
    """The state in it, or one instruction for all, changes how many tokens there are, and nothing else."""
    told = load_recipe("pi05_libero", ["model.discrete_state_input=true", "data.prompt=x", "data.relative=0"])
    assert step_key(told) == step_key(load_recipe("pi05_libero"))
    assert prompt_tokens(told, None) == 200
    assert prompt_tokens(load_recipe("pi05_libero"), None) == 48


def test_load_and_save_are_counted_as_the_compiler_says() -> None:
    """So a plan may leave out their compilation where they are far below the step."""
    compared = set()
    for recipe in map(load_recipe, ("pi05_libero", "pi05_libero_lora")):
        for changes in changes_of(recipe):
            made = changed(recipe, changes)
            for host in ([], ["moments"], ["ema", "moments"], ["ema", "moments", "masters"]):
                levers = Levers.model_validate(
                    {
                        "platform": "cuda",
                        "microbatch": 1,
                        "prompt_tokens": 1,
                        "cameras": ["base_0_rgb", "left_wrist_0_rgb"],
                        "host": host,
                        "compute_copy": "masters" in host,
                    }
                )
                for phase in ("load", "save"):
                    known = shipped().look_up(made, levers, phase)
                    counted = phase_bytes(made, levers, phase)
                    if known is not None:
                        compared.add((made.sha256(), phase, *host))
                        said = known.bytes["device"]
                        # The count leaves out the scales of quantized weights and the atlas's allowance.
                        below = 0.07 if made.train.frozen != "bfloat16" else 0.003
                        assert (1 - below) * said - MIB <= counted <= 1.001 * said + MIB, (
                            changes,
                            host,
                            phase,
                        )
    assert len(compared) >= 12


def test_the_step_has_one_hash_in_every_locale() -> None:
    # A shell of C without UTF-8, where Python reads files as ASCII unless told otherwise.
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"}
    program = "from harness.plan.source import source_hash; print(source_hash())"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == source_hash(), done.stderr
