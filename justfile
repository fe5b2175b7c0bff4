# Every task, one line each: `just --list` is the documentation of ci/. Each recipe only calls a script, which runs without just too.

# lists the tasks
default:
    @just --list --unsorted

# everything that must hold before a change lands, as .ci/run does; needs a container engine
all:
    ci/all

# ruff, its formatter's check, and mypy, with what is on PATH
check:
    ci/check

# the tests from the hash lock, without a container: just test tests/test_cli.py
test *options:
    ci/local test {{options}}

# a verb without a container: just local train --recipe smoke
local *arguments:
    ci/local {{arguments}}

# builds the images and fails when one is too large: just images smoke
images *services:
    ci/images {{services}}

# the README's smoke command in its container, how soon a second one begins, then verifies the run
smoke:
    ci/smoke

# what the containers may do and what they left: capabilities, networks, limits, owners, keys (after smoke)
confinement *options:
    ci/confinement {{options}}

# two real faults in real containers: a full disk, two runs on one directory (after images)
chaos *options:
    ci/chaos {{options}}

# the simulator in its image: certify, two recorded episodes, and a checkpoint served and evaluated, under 4 minutes (after images)
simulate:
    ci/simulate

# two nodes of a real Slurm in the test image: a run is killed, requeued, and ends bit for bit (after images)
slurm *options:
    ci/slurm {{options}}

# two containers on one network train one run: a process is killed, a cable is pulled, no bit differs (after images)
cluster *options:
    ci/cluster {{options}}

# whether what the CUDA image has is its lock, imports and fits together; needs no GPU (after images)
cuda *options:
    ci/cuda {{options}}

# compiles the real LoRA step for one absent card and compares it with the shipped atlas
atlas:
    ci/atlas

# openpi's own trainer in its image, to the report and resumed, and 20 steps beside ours; skipped without its source
openpi:
    ci/openpi

# places the source of openpi and lerobot for a build where GitHub is not reached: just openpi-source OPENPI LEROBOT
openpi-source openpi lerobot:
    ci/openpi-source {{openpi}} {{lerobot}}

# whether the cpu image holds what it says, and a run replays in it (after images); all planted differences: just contents -k planted
contents *options:
    ci/contents {{options}}

# builds an image twice without cache and compares the two, file by file: just rebuild cpu
rebuild *target:
    ci/rebuild {{target}}

# writes docker/lock from pyproject.toml, and the locks' hashes into the Dockerfile: just lock --upgrade
lock *options:
    ci/lock {{options}}

# prints the hash of all that a lock is computed from: just lock-inputs cpu
lock-inputs name:
    ci/lock-inputs {{name}}

# writes docs/errors.md from the source: just errors --check
errors *options:
    python ci/make_errors.py {{options}}

# records the dataset that ships in the package, with the simulator of $HARNESS_SIMULATOR
sample *options:
    python ci/make_sample.py {{options}}

# trains the tokenizer that ships in the package
tokenizer *options:
    python ci/make_tokenizer.py {{options}}

# the scenes, recorded episodes and golden frames of the simulator anew, with its own Python: just simulator-files scenes WORK
simulator-files which *options:
    $HARNESS_SIMULATOR/bin/python ci/make_{{which}}.py {{options}}   # ci/make_scenes.py, ci/make_recorded.py, ci/make_golden.py
