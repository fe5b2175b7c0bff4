"""The trainer that a command line starts: openpi's in JAX or PyTorch, LeRobot's, or another.

It also gives the number of processes and the trainer's arguments.

Sources: openpi scripts/train.py and scripts/train_pytorch.py, commit 15a9616; LeRobot pyproject.toml
[project.scripts] and docs/source/multi_gpu_training.mdx, commit 0e587e5; PyTorch torch/distributed/run.py and
accelerate/commands/launch.py (names of options).
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from harness.errors import HarnessError
from harness.openpi import configs as openpi_configs
from harness.openpi.shell_line import Simple, as_line, simple_commands

Trainer = Literal["openpi", "openpi-pytorch", "lerobot", "other"]
_OPENPI = {"train.py": "openpi", "train_pytorch.py": "openpi-pytorch"}
_MODULES = {"scripts.train": "openpi", "scripts.train_pytorch": "openpi-pytorch"}
_LEROBOT_MODULE = re.compile(r"lerobot\.(?:scripts\.(?:lerobot_)?train|__main__)")
# Launchers that start a program once per GPU, with the names of the options that give the count.
_LAUNCHERS = {
    "torchrun": ("nproc-per-node", "nproc_per_node"),
    "torch.distributed.run": ("nproc-per-node", "nproc_per_node"),
    "torch.distributed.launch": ("nproc-per-node", "nproc_per_node"),
    "accelerate": ("num_processes", "num-processes"),
    "accelerate.commands.launch": ("num_processes", "num-processes"),
    "deepspeed": ("num_gpus",),
}
_NODES = ("nnodes", "num_machines", "num-machines", "num_nodes")
_NOT_TRAINERS = {
    "compute_norm_stats.py": "harness stats --recipe pi05_libero",
    "serve_policy.py": "harness serve STEP --recipe pi05_libero",
    "convert_jax_model_to_pytorch.py": "harness export STEP OUT --to openpi-pytorch --recipe pi05_libero",
}
_ASSIGNMENT = re.compile(r"(?<!\w)([A-Za-z_]\w*+)=(.*)", re.DOTALL)
# The deepest nesting of lines within a line: `ssh host "tmux new -d 'bash -c …'"`.
_DEEPEST = 4


class Line(NamedTuple):
    """A trainer's command line. `arguments` are the trainer's own; openpi's begin with the configuration.

    `program` is the script, module or command ("" if the line begins with the configuration). `launcher` is
    the program that starts it once per GPU ("" for none). `processes` is the total number of processes (None
    if the line does not say). `environment` holds the variables that the line sets. `cut` are the shell's own
    parts.
    """

    trainer: Trainer
    program: str
    arguments: list[str]
    launcher: str
    processes: int | None
    environment: dict[str, str]
    cut: list[str]


class _Start(NamedTuple):
    """A program among the words of a command: its name, the index of its first argument, and its launcher."""

    trainer: Trainer
    program: str
    behind: int
    launcher: str


def whose(words: list[str]) -> Line:
    """The trainer's command in `words`: a configuration's name and its options, or a pasted line or script.

    Raises: HarnessError "openpi-option-invalid" of `shell_line`, and "not-a-trainer".
    """
    commands = _unwrapped(simple_commands(as_line(words)))
    starts = [_start(command.words) for command in commands]
    known = [index for index, start in enumerate(starts) if start is not None and start.trainer != "other"]
    chosen = next(iter(known), next((index for index, start in enumerate(starts) if start is not None), None))
    start = None if chosen is None else starts[chosen]
    if chosen is None or start is None:
        return _without_program(commands)
    command = commands[chosen]
    before, arguments = command.words[: start.behind], command.words[start.behind :]
    exported: dict[str, str] = {}
    for earlier in commands[:chosen]:
        if earlier.words[0] in ("export", "declare") or all(
            _ASSIGNMENT.fullmatch(word) for word in earlier.words
        ):
            exported |= _assigned(earlier.words)
    trainer = start.trainer
    if trainer in ("openpi", "other") and any(
        word.startswith(("--policy.", "--dataset.")) for word in arguments
    ):
        trainer = "lerobot"
    cut = _cut(command, [*commands[:chosen], *commands[chosen + 1 :]])
    processes = _processes(before, start.launcher)
    return Line(
        trainer, start.program, arguments, start.launcher, processes, exported | _assigned(before), cut
    )


def _unwrapped(commands: list[Simple], depth: int = 0) -> list[Simple]:
    """`commands`, with a line inside a word (`bash -c "…"`) in place of its command.

    That is done only if the inner line starts the trainer.
    """
    found = []
    for command in commands:
        inner: list[Simple] = []
        if depth < _DEEPEST and _start(command.words) is None:
            lines = (word for word in command.words if len(word.split()) > 1 and "train" in word)
            inner = next((each for each in (_inside(line, depth) for line in lines) if each), [])
        found += [each._replace(redirections=each.redirections + command.redirections) for each in inner] or [
            command
        ]
    return found


def _inside(line: str, depth: int) -> list[Simple]:
    """The commands of a line that is one word of another.

    None of them if it starts no trainer or is plain text.
    """
    try:
        inner = _unwrapped(simple_commands(line), depth + 1)
    except HarnessError:
        return []
    return inner if any(_start(each.words) is not None for each in inner) else []


def _start(words: list[str]) -> _Start | None:
    """The trainer that this command starts. None if it starts no trainer."""
    body = [index for index, word in enumerate(words) if not _ASSIGNMENT.fullmatch(word)]
    # If a configuration comes first, the words after it are its options, whatever their values look like.
    if not body or words[body[0]] in openpi_configs.names():
        return None
    launcher = ""
    for index in body:
        word = words[index]
        name = re.split(r"[/\\]", word)[-1].removesuffix(".exe")
        follows = words[index - 1] if index else ""
        if (
            name in ("torchrun", "deepspeed")
            or (name == "accelerate" and "launch" in words[index + 1 : index + 2])
            or (follows == "-m" and word in _LAUNCHERS)
        ):
            launcher = word if follows == "-m" else name
            continue
        trainer = _module(word) if follows in ("-m", "--module") else _program(word, name)
        if trainer is not None:
            return _Start(trainer, word, index + 1, launcher)
    return None


def _module(word: str) -> Trainer | None:
    if _LEROBOT_MODULE.fullmatch(word):
        return "lerobot"
    if word in _MODULES:
        return _trainer(_MODULES[word])
    return "other" if "train" in word else None


def _program(word: str, name: str) -> Trainer | None:
    """The trainer that the file or command `word` belongs to. None if it is no program that trains."""
    if _command(word, name) == "lerobot-train":
        return "lerobot"
    if name in _NOT_TRAINERS:
        return None
    if word.startswith("-") or any(letter.isspace() for letter in word) or not name.endswith(".py"):
        return None
    if name == "lerobot_train.py" or (name == "train.py" and "lerobot" in word):
        return "lerobot"
    return _trainer(_OPENPI.get(name, "other"))


def _command(word: str, name: str) -> str:
    """The command that `word` is, also if the shell looks up its path: `$(which lerobot-train)`."""
    asked = re.search(r"[ /(`](lerobot-[a-z-]+)[)`]?$", word) if word[:1] in ("$", "`") else None
    return asked[1] if asked else name


def _trainer(name: str) -> Trainer:
    trainers: dict[str, Trainer] = {"openpi": "openpi", "openpi-pytorch": "openpi-pytorch"}
    return trainers.get(name, "other")


def _without_program(commands: list[Simple]) -> Line:
    """The line of a configuration and its options, without a program.

    It is the first command that begins with a configuration, else the first of all.

    Raises: HarnessError "not-a-trainer" for openpi's and LeRobot's other programs.
    """
    bodies = [[word for word in command.words if not _ASSIGNMENT.fullmatch(word)] for command in commands]
    first = next(
        (index for index, body in enumerate(bodies) if body and body[0] in openpi_configs.names()), None
    )
    if not commands:
        return Line("openpi", "", [], "", 1, {}, [])
    if first is None:
        _check_trains([word for body in bodies for word in body])
        first = 0
    command = commands[first]
    length = next(
        (index for index, word in enumerate(command.words) if not _ASSIGNMENT.fullmatch(word)),
        len(command.words),
    )
    cut = _cut(command, [*commands[:first], *commands[first + 1 :]])
    return Line("openpi", "", command.words[length:], "", 1, _assigned(command.words[:length]), cut)


def _check_trains(words: list[str]) -> None:
    for word in words:
        name = _command(word, re.split(r"[/\\]", word)[-1])
        if name in _NOT_TRAINERS or re.fullmatch(r"lerobot-[a-z-]{1,40}", name):
            raise HarnessError(
                "not-a-trainer",
                f"{name} trains nothing",
                got=word,
                need="a line that starts scripts/train.py, scripts/train_pytorch.py or lerobot-train",
                fix=_NOT_TRAINERS.get(name, "harness import openpi pi05_libero"),
            )


def _assigned(words: list[str]) -> dict[str, str]:
    """The variables that `words` set. Words that set none are skipped."""
    return {match[1]: match[2] for word in words if (match := _ASSIGNMENT.fullmatch(word))}


def _cut(command: Simple, others: list[Simple]) -> list[str]:
    """The shell's parts, which are not the trainer's, each as it stood in the line."""
    cut = [
        *command.redirections,
        *(["&"] if command.after == "&" else []),
        *(other.said() for other in others),
    ]
    return [
        *cut,
        *(
            f"{text} (not run: it stands as it is)"
            for text in command.substitutions
            if "lerobot-train" not in text
        ),
    ]


def _processes(before: list[str], launcher: str) -> int | None:
    """The number of processes that the launcher starts in all. 1 without a launcher.

    None if the line leaves the number to a file or to the machine.
    """
    if not launcher:
        return 1
    each = _option(before, _LAUNCHERS[launcher])
    nodes = _option(before, _NODES)
    if launcher.startswith(("torchrun", "torch.")):
        each, nodes = each or "1", nodes or "1"
        return int(each) * int(nodes) if _is_count(each) and _is_count(nodes) else None
    # accelerate's count is over all machines. If it is absent, it is in accelerate's own file.
    return int(each) if each is not None and _is_count(each) else None


def _is_count(text: str) -> bool:
    return re.fullmatch(r"[1-9][0-9]{0,4}", text) is not None


def _option(words: list[str], names: tuple[str, ...]) -> str | None:
    """The value of the last of these options among `words`, after `=` or in the next word."""
    value = None
    for index, word in enumerate(words):
        name, equals, behind = word.lstrip("-").partition("=")
        if word.startswith("-") and name in names:
            value = behind if equals else next(iter(words[index + 1 : index + 2]), None)
    return value
