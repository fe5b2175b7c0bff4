"""Tests docker/entrypoint, docker/owner and docker/revision in a shell, with a stand-in for harness."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from harness.redact import known_secrets

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def run(*command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], **env},
    )


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """/opt/harness of an image, with a `harness` that prints its arguments and what it was told."""
    for name in ("entrypoint", "revision", "xla.env"):
        (tmp_path / "docker").mkdir(exist_ok=True)
        shutil.copy(ROOT / "docker" / name, tmp_path / "docker" / name)
    for name in ("bin", "runs", "cache"):
        (tmp_path / name).mkdir()
    command = tmp_path / "bin" / "harness"
    command.write_text(
        '#!/bin/sh\nprintf "%s|" "$@" "$HARNESS_REVISION" "$XLA_FLAGS"\nenv >"${0%/*}/../environment"\n'
    )
    command.chmod(0o755)
    (tmp_path / "revision").write_text(f"{COMMIT}+source.aa\n")
    return tmp_path


def start(image: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    places = {
        "HARNESS_RUNS": str(image / "runs"),
        "HARNESS_CACHE": str(image / "cache"),
        "PATH": f"{image}/bin:{os.environ['PATH']}",
    }
    return run(image / "docker" / "entrypoint", *arguments, **(places | env))


@pytest.mark.parametrize(
    ("given", "became"),
    [
        ([], ["train"]),
        (["--recipe", "smoke"], ["train", "--recipe", "smoke"]),
        (["--set", "data.dataset=a b"], ["train", "--set", "data.dataset=a b"]),
        (["plan", "--json"], ["plan", "--json"]),
        (["--help"], ["train", "--help"]),
    ],
)
def test_arguments(image: Path, given: list[str], became: list[str]) -> None:
    done = start(image, *given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("|")[:-3] == became
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("verb", "given", "became"),
    [
        ("evaluate", ["/runs/a"], ["evaluate", "/runs/a"]),
        ("evaluate", ["runs/a/checkpoints/5", "--json"], ["evaluate", "runs/a/checkpoints/5", "--json"]),
        ("evaluate", ["status", "/runs/a"], ["status", "/runs/a"]),
        ("serve", ["/runs/a"], ["serve", "/runs/a"]),
        ("", ["/runs/a"], ["/runs/a"]),
    ],
)
def test_a_path_belongs_to_the_services_verb(
    image: Path, verb: str, given: list[str], became: list[str]
) -> None:
    done = start(image, *given, HARNESS_VERB=verb)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("|")[:-3] == became


def test_what_numba_has_compiled_is_placed_where_it_may_write(image: Path) -> None:
    compiled = image / "simulator/share/numba/utils_1"
    compiled.mkdir(parents=True)
    (compiled / "f.nbi").write_text("compiled")
    told = {"HARNESS_SIMULATOR": str(image / "simulator"), "NUMBA_CACHE_DIR": str(image / "numba")}
    assert start(image, "evaluate", **told).returncode == 0
    assert (image / "numba/utils_1/f.nbi").read_text() == "compiled"
    # A second start in the same place leaves what is there.
    (image / "numba/utils_1/f.nbi").write_text("newer")
    assert start(image, "evaluate", **told).returncode == 0
    assert (image / "numba/utils_1/f.nbi").read_text() == "newer"


def test_revision_and_xla_flags_reach_the_command(image: Path) -> None:
    assert start(image, "probe").stdout.split("|")[1:3] == [
        f"{COMMIT}+source.aa",
        "--xla_gpu_deterministic_ops=true",
    ]
    assert start(image, "probe", XLA_FLAGS="--mine").stdout.split("|")[2] == "--mine"


def test_nothing_is_left_by_the_check(image: Path) -> None:
    start(image, "train")
    assert [*(image / "runs").iterdir(), *(image / "cache").iterdir()] == []


@pytest.mark.parametrize("place", ["HARNESS_RUNS", "HARNESS_CACHE"])
def test_train_refuses_a_place_it_cannot_write(image: Path, place: str) -> None:
    # A directory that is not there cannot be written even by root, whom these tests may be run by.
    done = start(image, "train", **{place: str(image / "gone")})
    assert (done.returncode, done.stdout) == (2, "")
    assert "[not-writable]" in done.stderr
    assert "HARNESS_UID=$(id -u) HARNESS_GID=$(id -g) docker compose run" in done.stderr
    assert start(image, "probe", **{place: str(image / "gone")}).returncode == 0
    assert start(image, "train", "--help", **{place: str(image / "gone")}).returncode == 0


def told(image: Path) -> dict[str, str]:
    """The environment that the command was started with."""
    return dict(
        line.split("=", 1) for line in (image / "environment").read_text().splitlines() if "=" in line
    )


def test_a_key_comes_from_a_file(image: Path) -> None:
    (image / "key").write_text("  0123456789abcdef\r\nsecond line\n")
    assert start(image, "probe", WANDB_API_KEY_FILE=str(image / "key")).returncode == 0
    assert told(image)["WANDB_API_KEY"] == "0123456789abcdef"
    assert "0123456789abcdef" in known_secrets(told(image))
    assert (
        start(
            image, "probe", WANDB_API_KEY_FILE=str(image / "key"), WANDB_API_KEY="of the environment"
        ).returncode
        == 0
    )
    assert told(image)["WANDB_API_KEY"] == "of the environment"


def test_without_a_file_no_key_is_set(image: Path) -> None:
    # /dev/null is what compose mounts then, at a place of its own.
    assert start(image, "probe").returncode == 0
    assert not {"WANDB_API_KEY", "HF_TOKEN"} & told(image).keys()


@pytest.mark.parametrize("content", [None, ""])
def test_a_key_whose_file_cannot_be_read_is_refused(image: Path, content: str | None) -> None:
    if content is not None:
        (image / "key").write_text(content)
    done = start(image, "probe", HF_TOKEN_FILE=str(image / "key"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "[secret-unreadable]: HF_TOKEN" in done.stderr
    assert "fix:" in done.stderr


def test_a_variable_that_is_set_to_nothing_is_not_set(image: Path) -> None:
    names = [
        "HF_ENDPOINT",
        "HF_TOKEN",
        "HTTPS_PROXY",
        "http_proxy",
        "no_proxy",
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "WANDB_BASE_URL",
        "WANDB_API_KEY",
    ]
    names += ["NCCL_SOCKET_IFNAME", "HARNESS_OFFLINE", "HARNESS_LOADER_WORKERS"]
    assert (
        start(
            image, "probe", **dict.fromkeys(names, ""), CUDA_VISIBLE_DEVICES="", NCCL_DEBUG="INFO"
        ).returncode
        == 0
    )
    assert not set(names) & told(image).keys()
    # Here nothing means: no card.
    assert told(image)["CUDA_VISIBLE_DEVICES"] == ""
    assert told(image)["NCCL_DEBUG"] == "INFO"


@pytest.mark.skipif(
    not Path("/etc/ssl/certs/ca-certificates.crt").exists(),
    reason="the system has no certificates of its own here",
)
def test_a_certificate_of_ones_own_is_added_to_the_systems(image: Path) -> None:
    (image / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nmine\n")
    assert (
        start(
            image,
            "probe",
            HARNESS_CA=str(image / "ca.pem"),
            SSL_CERT_FILE="/on/the/host.pem",
            TMPDIR=str(image),
        ).returncode
        == 0
    )
    bundle = told(image)["SSL_CERT_FILE"]
    assert {told(image)[name] for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")} == {
        bundle
    }
    assert Path(bundle).read_text().endswith("-----BEGIN CERTIFICATE-----\nmine\n")
    assert len(Path(bundle).read_bytes()) > 50_000


def test_a_certificate_that_is_only_on_the_host_is_refused(image: Path) -> None:
    done = start(image, "probe", SSL_CERT_FILE="/on/the/host.pem")
    assert done.returncode == 2
    assert "[certificate-missing]" in done.stderr
    assert "HARNESS_CA_FILE=/on/the/host.pem docker compose run" in done.stderr


@pytest.mark.parametrize(("umask", "mode"), [("077", 0o600), ("0027", 0o640), ("022", 0o644)])
def test_new_files_have_the_permissions_that_were_asked_for(image: Path, umask: str, mode: int) -> None:
    assert start(image, "probe", HARNESS_UMASK=umask).returncode == 0
    assert (image / "environment").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("umask", ["9", "77", "0o77", "u=rwx", "077; touch x"])
def test_what_is_no_umask_is_refused(image: Path, umask: str) -> None:
    done = start(image, "probe", HARNESS_UMASK=umask)
    assert done.returncode == 2
    assert "[umask-invalid]" in done.stderr


def test_a_service_may_have_another_verb(image: Path) -> None:
    assert start(image, HARNESS_VERB="fetch").stdout.split("|")[0] == "fetch"
    assert start(image, "--recipe", "smoke", HARNESS_VERB="fetch").stdout.split("|")[:3] == [
        "fetch",
        "--recipe",
        "smoke",
    ]
    assert start(image, "plan", HARNESS_VERB="fetch").stdout.split("|")[0] == "plan"
    assert start(image, "fetch", HARNESS_CACHE=str(image / "gone")).returncode == 2


@pytest.mark.parametrize(
    ("kib", "group", "limit"),
    [
        (64 * 2**20, None, "60211m"),
        (64 * 2**20, "max", "60211m"),
        (64 * 2**20, str(16 * 2**30), "13516m"),
        (64 * 2**20, str(2**63 - 4096), "60211m"),
    ],
)
def test_limits_leave_the_system_its_part(tmp_path: Path, kib: int, group: str | None, limit: str) -> None:
    (tmp_path / "meminfo").write_text(f"MemFree: 1 kB\nMemTotal:       {kib} kB\n")
    if group is not None:
        (tmp_path / "memory.max").write_text(group + "\n")
    done = run(
        ROOT / "docker" / "limits", HARNESS_MEMINFO=str(tmp_path / "meminfo"), HARNESS_CGROUP=str(tmp_path)
    )
    assert (done.returncode, done.stdout) == (0, f"HARNESS_MEMORY={limit}\n")


def test_limits_of_a_machine_with_nothing_to_spare(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 3000000 kB\n")
    done = run(
        ROOT / "docker" / "limits", HARNESS_MEMINFO=str(tmp_path / "meminfo"), HARNESS_CGROUP=str(tmp_path)
    )
    assert (done.returncode, done.stdout) == (1, "")


def git_index(path: Path, uid: int, gid: int, *, magic: bytes = b"DIRC") -> Path:
    """An index of one entry, by git's own description of the format: ten words, of which uid and gid are the
    8th and 9th.
    """
    entry = struct.pack(">10I20sH", 1, 2, 3, 4, 5, 6, 0o100644, uid, gid, 7, bytes(20), 1) + b"a" + bytes(1)
    path.write_bytes(magic + struct.pack(">2I", 2, 1) + entry)
    return path


@pytest.mark.parametrize(("uid", "gid"), [(0, 0), (1000, 1000), (31415, 100), (4_000_000_000, 2**32 - 2)])
def test_owner_is_read_from_the_index(tmp_path: Path, uid: int, gid: int) -> None:
    assert (
        run("sh", ROOT / "docker" / "owner", git_index(tmp_path / "index", uid, gid)).stdout
        == f"{uid} {gid}\n"
    )


def test_owner_without_an_index_is_the_first_user(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"DIRC" + bytes(8))
    (tmp_path / "empty").touch()
    for index in (
        tmp_path / "none",
        tmp_path / "short",
        tmp_path / "empty",
        git_index(tmp_path / "other", 5, 5, magic=b"PACK"),
    ):
        assert run("sh", ROOT / "docker" / "owner", index).stdout == "1000 1000\n"


@pytest.mark.skipif(
    shutil.which("git") is None, reason="git itself writes this index; the test image has no git"
)
def test_owner_is_what_git_writes(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for command in (["init", "-q"], ["add", "file"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert (
        run("sh", ROOT / "docker" / "owner", tmp_path / ".git" / "index").stdout
        == f"{os.getuid()} {os.getgid()}\n"
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("harness/a.py", "docker/lock/cpu.txt", ".git/HEAD", ".git/refs/heads/main"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / ".git/refs/heads/main").write_text(f"{COMMIT}\n")
    return tmp_path


def revision(checkout: Path) -> tuple[str, str]:
    commit, _, source = run("sh", ROOT / "docker" / "revision", checkout).stdout.strip().partition("+source.")
    assert len(source) == 16
    return commit, source


def test_revision_is_the_commit_wherever_git_keeps_it(checkout: Path) -> None:
    assert revision(checkout)[0] == COMMIT
    (checkout / ".git/refs/heads/main").unlink()
    (checkout / ".git/packed-refs").write_text(
        f"# pack-refs\n{'f' * 40} refs/heads/other\n{COMMIT} refs/heads/main\n"
    )
    assert revision(checkout)[0] == COMMIT
    (checkout / ".git/HEAD").write_text(f"{'a' * 40}\n")
    assert revision(checkout)[0] == "a" * 40
    shutil.rmtree(checkout / ".git")
    assert revision(checkout)[0] == "unknown"


def test_revision_follows_the_source(checkout: Path) -> None:
    before = revision(checkout)[1]
    (checkout / "harness/__pycache__").mkdir()
    (checkout / "harness/__pycache__/a.pyc").write_text("x")
    assert revision(checkout)[1] == before
    (checkout / "harness/a.py").write_text("x")
    edited = revision(checkout)[1]
    (checkout / "docker/lock/cpu.txt").write_text("x")
    assert len({before, edited, revision(checkout)[1]}) == 3
