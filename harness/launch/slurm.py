"""A batch script for Slurm, which starts one process on each node and goes on by itself when it is requeued.

Sources: sbatch(1), srun(1) and scontrol(1) of Slurm 22.05, run in tests/test_launch_slurm.py. With --image
also the options of pyxis (github.com/NVIDIA/pyxis, README and wiki "Usage") and the names that enroot takes
(github.com/NVIDIA/enroot, src/docker.sh); these are written from there and were not run.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from harness.errors import HarnessError
from harness.launch.asked import Asked
from harness.launch.command import RECIPE, head, train_words
from harness.run.directory import CHECKPOINTS, MANIFEST

FILE = "job.sbatch"
# Slurm looks at its jobs once a minute, and may signal so much earlier (sbatch(1), --signal). The rest is for
# a save that is quick.
_EARLY_S = 90

_SCRIPT = """\
{environment}
run={run}
train=(
{train}
)
step=(
{step}
)
kept={out}/$SLURM_JOB_ID
mkdir -p -- "$run"{more}
touch -- "$kept.start"
start=$((${{SLURM_RESTART_COUNT:-0}} + 1))
echo "start $start of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, $(date --iso-8601=seconds)"
code=0
srun "${{step[@]}}" "${{train[@]}}" || code=$?

again=
if ((code == 0)); then
  # So near the end of its time it was Slurm that stopped the step. A run that is finished saves nothing more.
  end=$(squeue --noheader --job="$SLURM_JOB_ID" --format=%e) || end=
  end=$(date --date="$end" +%s 2>/dev/null) || end=
  saved=$(find "$run/{checkpoints}" -newer "$kept.start" -print -quit 2>/dev/null) || saved=
  if [[ -n $end && -n $saved ]] && ((end - $(date +%s) <= {window})); then
    again="the time limit has come"
  fi
elif [[ -e $run/{manifest} ]]; then
  # It had begun to train, so this is no mistake of the recipe.
  echo "start $start: exit code $code" >>"$kept.failures"
  if (($(wc -l <"$kept.failures") <= {restarts})); then
    again="exit code $code"
  fi
fi
if [[ -n $again ]]; then
  echo "requeued: $again, $(date --iso-8601=seconds)"
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def batch_script(asked: Asked) -> str:
    """The text of the batch script.

    Raises: HarnessError "launch-path" for a directory that Slurm or pyxis could not take.
    """
    directives = "\n".join(f"#SBATCH {line}" for line in _directives(asked))
    comments = "\n".join(
        f"# {line}"
        for line in head(
            asked,
            f"sbatch {FILE}     starts it; a requeue (also: scontrol requeue JOB) goes on from the last save",
            "scancel --signal=TERM JOB     saves and ends it; scancel JOB leaves it 30 s (KillWait) for that",
        )
    )
    contained = asked.image is not None
    run = f"/runs/{asked.name}" if contained else asked.run
    body = _SCRIPT.format(
        environment="\n".join(
            f"export {name}={shlex.quote(value)}" for name, value in sorted(asked.environment.items())
        ),
        run=shlex.quote(asked.run),
        train=_lines(train_words(asked, run, contained=contained)),
        step=_lines(_step(asked)),
        more=f" {shlex.quote(asked.cache)}" if contained else "",
        manifest=MANIFEST,
        checkpoints=CHECKPOINTS,
        out=shlex.quote(asked.out),
        window=asked.grace_s + _EARLY_S,
        restarts=asked.restarts,
    )
    return f"#!/bin/bash\n{directives}\n{comments}\nset -uo pipefail\n{body}"


def _directives(asked: Asked) -> Iterator[str]:
    if "\\" in asked.out:
        raise HarnessError(
            "launch-path",
            "in a name with a backslash Slurm writes no job's number",
            got=asked.out,
            need="a directory without a backslash in its name",
            fix="--out OTHER",
        )
    yield f"--job-name={_quoted(asked.name)}"
    # A percent sign stands for a field of the job.
    yield f"--output={_quoted(asked.out.replace('%', '%%') + '/')}%j.log"
    yield "--open-mode=append"
    yield f"--nodes={asked.hosts}"
    yield "--ntasks-per-node=1"
    if asked.gpus:
        yield f"--gpus-per-node={asked.gpus}"
    if asked.cpus is None:
        yield "--exclusive"
    else:
        yield f"--cpus-per-task={asked.cpus}"
    # 0 is all of the node.
    if asked.memory_gib is not None:
        yield f"--mem={asked.memory_gib}G"
    elif asked.cpus is None:
        yield "--mem=0"
    # To the steps, not to this script: every process saves the same step, and ends with 0.
    yield f"--signal=TERM@{asked.grace_s}"
    yield "--requeue"
    for option in ("partition", "account", "time"):
        if getattr(asked, option) is not None:
            yield f"--{option}={getattr(asked, option)}"


def _step(asked: Asked) -> Iterator[str]:
    """The options of srun. A process that has lost a peer names it and ends by itself.

    So nobody is killed for another's end, and process 0 has its time for the pages of the run.
    """
    yield "--kill-on-bad-exit=0"
    yield "--wait=0"
    yield "--label"
    if asked.cpus is not None:
        yield f"--cpus-per-task={asked.cpus}"
    else:
        # A task would be bound to one core of the node that the job has for itself.
        yield "--cpu-bind=none"
    if asked.image is not None:
        yield f"--container-image={_pyxis_name(asked.image)}"
        yield f"--container-mounts={','.join(_mounts(asked))}"
        yield "--no-container-mount-home"
        yield "--no-container-entrypoint"


def _mounts(asked: Asked) -> Iterator[str]:
    rows = [(asked.runs, "/runs", ""), (asked.datasets, "/datasets", ":ro"), (asked.cache, "/cache", "")]
    if asked.recipe_text is not None:
        rows.append((asked.recipe, RECIPE, ":ro"))
    for source, target, flags in rows:
        if set(source) & set(":,"):
            raise HarnessError(
                "launch-path",
                "pyxis separates what it mounts by ',' and ':'",
                got=source,
                need="a directory without these in its name",
                fix="a link to it, and HARNESS_RUNS, HARNESS_CACHE or HARNESS_DATASETS with that name",
            )
        yield f"{source}:{target}{flags}"


def _pyxis_name(image: str) -> str:
    """REGISTRY/NAME@sha256:… as enroot takes it: REGISTRY#NAME:sha256:…"""
    if image.startswith("/"):
        return image
    name, _, digest = image.partition("@")
    first, slash, rest = name.partition("/")
    if slash and (set(first) & set(".:") or first == "localhost"):
        name = f"{first}#{rest}"
    # A digest stands for the tag.
    stem, colon, tag = name.rpartition(":")
    return f"{stem if colon and '/' not in tag and '#' not in tag else name}:{digest}"


def _lines(words: object) -> str:
    assert isinstance(words, list | Iterator)
    return "\n".join(f"  {shlex.quote(each)}" for each in words)


def _quoted(text: str) -> str:
    """`text` for a line that sbatch reads, whose quotes are as a shell's."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
