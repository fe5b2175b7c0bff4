"""The content of LeRobot's training command, and the nearest command of the harness.

LeRobot's defaults depend on its version, which no line names.

Source: LeRobot src/lerobot/configs/train.py and src/lerobot/policies/pi05/configuration_pi05.py (names of
options), and docs/source/multi_gpu_training.mdx (a batch a process), commit 0e587e5.
"""

from __future__ import annotations

import re
import shlex

from harness.artifacts import Finding, OpenpiCommand
from harness.openpi.pytorch import UNKNOWN
from harness.openpi.trainer_line import Line

_MODELS = {"pi05": "π0.5", "pi0": "π0", "pi0_fast": "π0-FAST", "pi0fast": "π0-FAST"}
_DEFAULT, _FILE = "LeRobot's default", "as the file says"


def explain_lerobot(line: Line) -> OpenpiCommand:
    """The training that the line describes. Everything else is unknown, with the reason."""
    options = read_options(line.arguments)
    policy, why = _policy(options)
    model = _MODELS.get(policy, policy or "unknown")
    unsaid = (
        "LeRobot's own, of a version that the line does not name; nothing of it was compiled or counted here"
    )
    recipe = (
        "LeRobot's defaults, its features and its data order are its own: none of our recipes does the same"
    )
    return OpenpiCommand(
        commit="",
        trainer="lerobot",
        command=shlex.join(["lerobot-train", *line.arguments]),
        config=policy,
        model=model,
        options=dict(options),
        effective={},
        freezes=any(
            _is_true(options.get(name))
            for name in ("policy.freeze_vision_encoder", "policy.train_expert_only")
        ),
        deviations=_said(options, line, policy),
        findings=[_another(options, line, policy, why)],
        cut=line.cut,
        unknown=dict.fromkeys(UNKNOWN, unsaid)
        | {
            "recipe": recipe,
            "commit": "the line does not say which LeRobot it starts",
        },
    )


def read_options(words: list[str]) -> dict[str, str]:
    """Option → value, from `--name=value`, `--name value` and a bare `--name`. The last of several counts."""
    found: dict[str, str] = {}
    for index, word in enumerate(words):
        if not word.startswith("--") or word == "--":
            continue
        name, equals, value = word[2:].partition("=")
        behind = words[index + 1] if index + 1 < len(words) else "--"
        found[name] = value if equals else "true" if behind.startswith("--") else behind
    return found


def _policy(options: dict[str, str]) -> tuple[str, str]:
    """(LeRobot's name of the policy, the option or file that states it).

    The name is empty if only a file of the checkpoint states it.
    """
    if "policy.type" in options:
        return options["policy.type"], "--policy.type"
    path = options.get("policy.path") or options.get("policy.pretrained_path") or ""
    if not path and "config_path" in options:
        return "", "the file of --config_path, which is not read here"
    name = path.rstrip("/").rpartition("/")[2]
    like = next(
        (policy for policy in _MODELS if name.startswith(policy) and not name[len(policy) :][:1].isalnum()),
        "",
    )
    return (
        like,
        f"the name of {path}, whose config.json has the word" if path else "nothing: no --policy.type",
    )


def _said(options: dict[str, str], line: Line, policy: str) -> list[str]:
    """The contents of the options, each a sentence."""
    texts = []
    # What no option says, LeRobot takes from the file of --config_path.
    file = _FILE if "config_path" in options else ""
    dataset = options.get("dataset.repo_id") or options.get("dataset.root")
    if dataset:
        texts.append(
            f"dataset {dataset}"
            + (f", episodes {options['dataset.episodes']}" if "dataset.episodes" in options else "")
        )
    elif file:
        texts.append(f"dataset: {file}")
    start = options.get("policy.pretrained_path") or options.get("policy.path")
    if start:
        texts.append(f"weights from {start}")
    else:
        texts.append(
            f"weights: {file}"
            if file
            else "no weights named: neither --policy.path nor --policy.pretrained_path"
        )
    texts.append(f"{options['steps']} steps" if "steps" in options else f"steps: {file or _DEFAULT}")
    texts.append(_batch(options, line))
    if any(name.startswith("peft.") for name in options):
        texts.append(
            "LoRA or another adapter of PEFT: "
            + ", ".join(f"--{name}={value}" for name, value in options.items() if name.startswith("peft."))
        )
    if _is_true(options.get("policy.train_expert_only")):
        texts.append("the action expert and the projections alone are trained (train_expert_only)")
    elif _is_true(options.get("policy.freeze_vision_encoder")):
        texts.append("the vision tower is frozen (freeze_vision_encoder)")
    texts += [
        f"{text}: {options[name]}"
        for name, text in (("policy.dtype", "weights in"), ("config_path", "more options in the file"))
        if name in options
    ]
    if policy == "pi05":
        texts.append(
            "LeRobot's π0.5 writes the state into the prompt and keeps no average; the published recipe here"
            " does the reverse"
        )
    return texts


def _batch(options: dict[str, str], line: Line) -> str:
    each, count = options.get("batch_size"), line.processes
    if each is None:
        return f"batch: {_FILE if 'config_path' in options else _DEFAULT}, in each process"
    if count == 1:
        return f"batch {each}"
    if count is None:
        return (
            f"batch {each} in each process; the line does not say how many processes {line.launcher} starts"
        )
    together = f", {int(each) * count:,} in all" if _is_count(each) else ""
    return f"batch {each} in each of {count} processes{together}"


def _another(options: dict[str, str], line: Line, policy: str, why: str) -> Finding:
    if policy == "pi05":
        got, fix = f"LeRobot's command, policy pi05 (by {why})", _nearest(options, line)
        need = (
            "a recipe of ours; the nearest is below, with your cameras, state and actions mapped by --set"
            " data.cameras.… (harness data shows their names)"
        )
    elif policy:
        got, fix = f"LeRobot's command, policy {policy} (by {why})", "harness import openpi pi05_libero"
        need = (
            "a policy that is trained here, which is π0.5 alone; LeRobot itself trains this one, and harness"
            " analyse reads its log"
        )
    else:
        got, fix = f"LeRobot's command; its policy is known by {why}", "harness import openpi pi05_libero"
        need = "--policy.type or --policy.path; here π0.5 alone is trained"
    return Finding(severity="error", check="another-trainer", got=got, need=need, fix=fix)


def _nearest(options: dict[str, str], line: Line) -> str:
    """The nearest command of the harness: the same data, batch, horizon and steps, as far as stated."""
    adapters = any(name.startswith("peft.") for name in options)
    words = ["harness", "train", "--recipe", "pi05_libero_lora" if adapters else "pi05_libero"]
    if _is_count(options.get("steps", "")):
        words += ["--steps", options["steps"]]
    dataset = options.get("dataset.root") or options.get("dataset.repo_id")
    if dataset and not dataset.startswith("["):
        words += ["--set", f"data.dataset={dataset}"]
    batch = options.get("batch_size", "")
    if _is_count(batch):
        words += ["--set", f"train.global_batch={int(batch) * (line.processes or 1)}"]
    if _is_count(options.get("policy.chunk_size", "")):
        words += ["--set", f"model.action_horizon={options['policy.chunk_size']}"]
    return shlex.join(words)


def _is_true(text: str | None) -> bool:
    return text is not None and text.lower() in ("true", "1", "yes")


def _is_count(text: str) -> bool:
    return re.fullmatch(r"[1-9][0-9]{0,8}", text) is not None
