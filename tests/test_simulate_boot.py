"""Tests how a process of the simulator is started: what it is given, what it is not, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.simulate import boot, frames


def venv(directory: Path) -> dict[str, str]:
    """An environment with a Python and no packages at all."""
    (directory / "bin").mkdir(parents=True)
    base = Path(sys.base_prefix) / "bin"
    (directory / "bin/python").symlink_to(base / "python3")
    (directory / "pyvenv.cfg").write_text(f"home = {base}\ninclude-system-site-packages = false\n")
    return {boot.VARIABLE: str(directory), "PATH": os.environ["PATH"]}


@pytest.mark.parametrize("named", ["", "/no/such/environment", str(Path(__file__).parent)])
def test_a_missing_simulator_is_named_with_both_ways_to_get_one(named: str) -> None:
    with pytest.raises(HarnessError) as caught:
        boot.command(environ={boot.VARIABLE: named} if named else {})
    assert caught.value.code == "simulator-missing"
    assert "docker compose run --rm evaluate" in caught.value.fix
    assert "ci/local evaluate" in caught.value.fix


def test_no_secret_is_handed_on_and_each_library_has_one_thread() -> None:
    secrets = (
        "HF_TOKEN",
        "WANDB_API_KEY",
        "HARNESS_SERVE_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "MY_PASSWORD",
        "PYTHONPATH",
    )
    kept = {"PATH": "/bin", "HOME": "/root", "MUJOCO_GL": "egl", "CUDA_VISIBLE_DEVICES": "0"}
    found = boot.environment({**dict.fromkeys(secrets, "x"), **kept})
    assert not set(secrets) & set(found)
    assert kept.items() <= found.items()
    assert found["OMP_NUM_THREADS"] == found["LP_NUM_THREADS"] == "1"
    assert boot.environment({}, threads=3)["OPENBLAS_NUM_THREADS"] == "3"


def test_its_python_sees_the_package_harness_and_nothing_else_of_ours(tmp_path: Path) -> None:
    environ = venv(tmp_path / "env")
    python, *flags, package, _ = boot.command(environ=environ)
    assert Path(package) == Path(boot.__file__).parents[1]
    probe = tmp_path / "probe.py"
    probe.write_text("")
    seen = (
        "import importlib.util as util\n"
        "names = ('harness.errors', 'pydantic', 'jax', 'tests', 'probe')\n"
        "print([bool(util.find_spec(name)) for name in names])\n"
    )
    code = flags.pop().rsplit("importlib.import_module", 1)[0] + seen
    done = subprocess.run(
        [python, *flags, code, package],
        cwd=tmp_path,
        env={**boot.environment(environ), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "[True, False, False, False, False]", done.stderr


def worker(tmp_path: Path) -> subprocess.Popen[bytes]:
    """The worker of this very Python, whose packages have no simulator."""
    environ = {**os.environ, boot.VARIABLE: str(Path(sys.executable).parents[1]), "MUJOCO_GL": "glfw"}
    with (tmp_path / "log").open("wb") as log:
        return boot.start(log, environ)


def close(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


def test_a_worker_that_cannot_draw_answers_what_is_missing(tmp_path: Path) -> None:
    process = worker(tmp_path)
    try:
        assert process.stdin
        assert process.stdout
        frames.send(process.stdin, {"do": "hello"})
        got = frames.receive(process.stdout)
        assert got is not None
        assert (got[0]["is"], got[0]["code"]) == ("error", "gl-missing")
        assert got[0]["fix"]
        assert process.wait(timeout=20) == 2
    finally:
        close(process)


def test_a_worker_ends_at_sigterm_and_at_the_end_of_its_input(tmp_path: Path) -> None:
    process = worker(tmp_path)
    try:
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) in (128 + signal.SIGTERM, -signal.SIGTERM)
    finally:
        close(process)
    process = worker(tmp_path)
    try:
        assert process.stdin
        process.stdin.close()
        assert process.wait(timeout=20) == 2
    finally:
        close(process)
