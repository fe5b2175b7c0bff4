"""Tests the Dockerfile's conventions from its text.

They are: pinned base, hashes, no compiler at run time, a reason for every line.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.version import Version

from harness.openpi.table import COMMIT

ROOT = Path(__file__).parents[1]
TARGETS = ("cpu", "cuda", "cuda13", "test")
# The simulator's environment beside ours, and whose lock the harness in it has.
SIMULATORS = {"simulator": "cuda", "simulator-cpu": "cpu"}
IMAGES = (*TARGETS, "openpi", *SIMULATORS)
# Upstream's environment beside ours: what it is made of, its own lock says.
OPENPI = ROOT / "docker/openpi/install"


def instructions(text: str) -> list[tuple[str, str, bool]]:
    """(name, arguments, whether a comment stands right above) of every instruction, continued lines
    joined.
    """
    found: list[tuple[str, str, bool]] = []
    commented = continued = False
    for line in text.splitlines():
        stripped = line.strip()
        if continued:
            name, arguments, comment = found[-1]
            found[-1] = (name, f"{arguments} {stripped.rstrip(chr(92)).strip()}", comment)
            continued = stripped.endswith("\\")
        elif stripped.startswith("#"):
            commented = True
        elif stripped:
            name, _, arguments = stripped.partition(" ")
            found.append((name, arguments.rstrip("\\").strip(), commented))
            commented, continued = False, stripped.endswith("\\")
        else:
            commented = False
    return found


LINES = instructions((ROOT / "Dockerfile").read_text())


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Stage → (what it is made from, its instructions)."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    current: list[tuple[str, str]] = []
    for name, arguments, _ in LINES:
        if name == "FROM":
            base, _, stage = arguments.partition(" AS ")
            current = []
            found[stage] = (base, current)
        else:
            current.append((name, arguments))
    return found


def line_of(stage: str) -> list[tuple[str, str]]:
    """The instructions of a stage and of all stages it stands on, the first first."""
    base, own = stages()[stage]
    return [*(line_of(base) if base in stages() else []), *own]


def test_parser_sees_what_it_should() -> None:
    text = "# why\nFROM a AS b\nRUN x \\\n && y\n\n# far\n\nENV A=1\n"
    assert instructions(text) == [("FROM", "a AS b", True), ("RUN", "x && y", False), ("ENV", "A=1", False)]


def test_every_instruction_says_why() -> None:
    assert [f"{name} {arguments}" for name, arguments, commented in LINES if not commented] == []


def test_base_image_is_pinned_by_digest() -> None:
    default = next(
        arguments for name, arguments, _ in LINES if name == "ARG" and arguments.startswith("BASE_IMAGE=")
    )
    assert re.fullmatch(r"BASE_IMAGE=nvidia/cuda:12\.9\.1-base-ubuntu24\.04@sha256:[0-9a-f]{64}", default)
    outside = {base for base, _ in stages().values()} - set(stages())
    # Nothing is in the scratch stage but scripts and a lock, which are mounted.
    assert outside == {"${BASE_IMAGE}", "scratch"}


def test_old_builders_can_read_it() -> None:
    """Engine 20.10's built-in frontend: no frontend of one's own, no here-documents, no COPY --link or named
    contexts.
    """
    text = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"^#\s*syntax\s*=", text, re.MULTILINE)
    assert not re.search(r"<<-?['\"]?[A-Z]", text)
    assert not re.search(r"^(COPY|ADD)\s+--(link|parents|exclude)", text, re.MULTILINE)


@pytest.mark.parametrize("target", TARGETS)
def test_dependencies_come_from_the_lock_with_hashes(target: str) -> None:
    runs = [arguments for name, arguments in stages()[f"dependencies-{target}"][1] if name == "RUN"]
    assert len(runs) == 1
    assert "pip install" in runs[0]
    assert "--require-hashes" in runs[0]
    assert "sha256sum --check" in runs[0]
    assert f"docker/lock/{target}.txt /lock.txt" in [
        arguments for name, arguments in stages()[f"dependencies-{target}"][1] if name == "COPY"
    ]


def test_no_install_goes_past_the_locks() -> None:
    for name, arguments, _ in LINES:
        for install in re.findall(r"pip install.*?(?=&&|$)", arguments if name == "RUN" else ""):
            assert "--require-hashes" in install or {
                "--no-deps",
                "--no-index",
                "--no-build-isolation",
            } <= set(install.split())


@pytest.mark.parametrize("target", IMAGES)
def test_only_the_test_image_has_a_compiler(target: str) -> None:
    installed = " ".join(
        arguments for name, arguments in line_of(target) if name == "RUN" and "/apt/install" in arguments
    )
    assert "build-essential" not in installed
    assert bool(re.search(r"\bgcc\b", installed)) == (target == "test")


@pytest.mark.parametrize("target", IMAGES)
def test_a_change_of_the_source_installs_nothing_again(target: str) -> None:
    lines = line_of(f"{target}-tree")
    large = [
        number
        for number, (name, arguments) in enumerate(lines)
        if (name == "COPY" and re.search(r"/opt/(venv|simulator)\b", arguments))
        or "/apt/install" in arguments
    ]
    source = [
        number
        for number, (_, arguments) in enumerate(lines)
        if "target=/checkout" in arguments or arguments.startswith(". ")
    ]
    assert source
    assert max(large) < min(source)
    assert len([number for number in large if lines[number][0] == "COPY"]) == 1 + (target in SIMULATORS)


@pytest.mark.parametrize("target", IMAGES)
def test_image_is_labelled_and_not_root(target: str) -> None:
    lines = line_of(target)
    (label,) = [arguments for name, arguments in lines if name == "LABEL"]
    assert 'org.opencontainers.image.revision="${HARNESS_REVISION}"' in label
    # The harness beside openpi is that of the cpu image; the manifest has the hash of upstream's own lock.
    lock = {"openpi": "CPU"} | {name: base.upper() for name, base in SIMULATORS.items()}
    assert f'harness.lock.sha256="${{{lock.get(target, target.upper())}_LOCK_SHA256}}"' in label
    both = 'harness.simulator.lock.sha256="${SIMULATOR_LOCK_SHA256} ${LIBERO_LOCK_SHA256}"'
    assert (both in label) == (target in SIMULATORS)
    assert [arguments for name, arguments in lines if name == "USER"] == ["harness"]


def test_openpi_is_the_commit_that_the_harness_knows() -> None:
    (commit,) = [
        arguments.partition("=")[2]
        for name, arguments, _ in LINES
        if name == "ARG" and arguments.startswith("OPENPI_COMMIT=")
    ]
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    assert commit.startswith(COMMIT)


def test_openpi_depends_on_its_installer_alone() -> None:
    """Eight gigabytes are not installed again because a line of the harness changed."""
    base, own = stages()["openpi-environment"]
    assert "dependencies" not in base
    assert not any("/checkout" in arguments or name == "COPY" for name, arguments in own)
    assert [arguments for name, arguments in stages()["openpi-source"][1] if name == "COPY"] == [
        "docker/openpi .openpi-sourc[e] /source/"
    ]


def test_the_simulator_is_installed_with_hashes_and_builds_with_what_is_locked() -> None:
    text = (ROOT / "docker/simulator/install").read_text()
    assert "install --quiet --no-compile --require-hashes" in text
    assert text.count("--requirement") == 2
    assert '--no-deps --no-build-isolation --use-pep517 --requirement "$locks/libero.txt"' in text
    (run,) = [arguments for name, arguments in stages()["dependencies-simulator"][1] if name == "RUN"]
    assert run.count("sha256sum --check") == 2
    assert "sh /simulator/install /opt/simulator /simulator" in run


@pytest.mark.parametrize("target", SIMULATORS)
def test_both_images_with_the_simulator_have_the_same_one(target: str) -> None:
    base, own = stages()[f"{target}-tree"]
    assert base == f"{SIMULATORS[target]}-base"
    text = "\n".join(f"{name} {arguments}" for name, arguments in own)
    other = "simulator-cpu" if target == "simulator" else "simulator"
    theirs = "\n".join(f"{name} {arguments}" for name, arguments in stages()[f"{other}-tree"][1])
    for line in re.findall(r"^(?:RUN|COPY) .*", text, re.MULTILINE):
        assert line in theirs
    assert "HARNESS_SIMULATOR=/opt/simulator" in text
    # NVIDIA's EGL comes into a container that asks for it.
    assert ("NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics" in text) == (target == "simulator")
    assert ("JAX_PLATFORMS=cpu" in text) == (target == "simulator-cpu")


def test_openpi_is_installed_as_its_lock_says_and_with_hashes() -> None:
    text = OPENPI.read_text()
    assert "uv sync --quiet --frozen --no-dev" in text
    assert text.count("pip install") == text.count("--require-hashes") == 2
    assert "GIT_LFS_SKIP_SMUDGE=1" in text
    assert '"$(git -C "$root" rev-parse HEAD)" = "$commit"' in text
    # The compiler for evdev goes in the layer in which it came.
    assert "build-essential" in text
    assert text.index("apt-get purge") > text.index("uv sync")


def test_the_one_deviation_from_openpis_lock_is_wandb() -> None:
    pins = [
        line
        for line in (OPENPI.parent / "wandb.txt").read_text().splitlines()
        if line and not line.startswith(("#", " "))
    ]
    assert [pin.partition("==")[0] for pin in pins] == ["wandb"]
    assert Version(pins[0].partition("==")[2].strip(" \\")) >= Version("0.24.1")
    for name in ("wandb.txt", "uv.txt"):
        assert "://" not in (OPENPI.parent / name).read_text()
        assert "--hash=sha256:" in (OPENPI.parent / name).read_text()


def test_no_layer_takes_a_secret() -> None:
    for name, arguments, _ in LINES:
        assert not re.search(r"(?i)(api_?key|token|password|secret)", arguments), f"{name} {arguments}"


def test_slow_allocator_is_set_nowhere() -> None:
    for path in ("Dockerfile", "compose.yaml", "docker/xla.env", "docker/entrypoint", "ci/local"):
        assert "XLA_PYTHON_CLIENT_ALLOCATOR" not in (ROOT / path).read_text()
