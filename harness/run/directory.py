"""The run directory: file names, atomic writes, hashes, and which artifacts are current."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from pydantic import BaseModel

from harness.artifacts import Artifact, Manifest
from harness.errors import HarnessError
from harness.received.denied import may_be_opened, may_be_written
from harness.received.files import ARTIFACT_BYTES, UnsafeFile, check_stays, read_received, stays
from harness.received.json import read_json
from harness.received.litter import is_litter
from harness.received.text import word
from harness.received.writing import open_beside
from harness.redact import redact, redact_json
from harness.strict import parse

A = TypeVar("A", bound=Artifact)

METRICS = "metrics.jsonl"
HELD_OUT = "held_out.jsonl"
MANIFEST = Manifest.FILE
CHECKPOINTS = "checkpoints"
RECIPE = "recipe.yaml"
REPORT = "report.html"
DATASET_PAGE = "dataset.html"
CAMERA_VIEWS = "camera_views.png"
PREDICTED_ACTIONS = "predicted_actions.png"
MOVED = "moved.png"
# The kernels that XLA chose by timing. XLA writes text if the name ends in pbtxt.
KERNELS = "kernels.pbtxt"
HELD_OUT_KERNELS = "held_out_kernels.pbtxt"
# The directory of a trace of some steps, and the text of the program that ran.
PROFILE = "profile"
PROGRAM = "step.hlo.txt"
# What is read of a file at a time to hash it.
_BLOCK_BYTES = 2**18
# The errors of a full disk, and of a full quota.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def sha256_json(value: Any) -> str:
    """Hash of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_jsonable).encode()).hexdigest()


def sha256_file(path: Path, stop: Event | None = None) -> str:
    """The file's SHA-256. A thread that nobody waits for any longer is ended by `stop`.

    Raises: CancelledError once `stop` is set.
    """
    total, block = hashlib.sha256(), memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(block):
            if stop is not None and stop.is_set():
                raise CancelledError
            total.update(block[:n])
    return total.hexdigest()


def sha256_directory(directory: Path, stop: Event | None = None) -> str:
    """SHA-256 over the names and contents of all files below `directory`; `stop` as for `sha256_file`.

    What systems lay among them does not count.
    """
    files = (path for path in directory.rglob("*") if path.is_file())
    own = [path for path in files if not is_litter(*path.relative_to(directory).parts)]
    return sha256_files(directory, own, stop)


def sha256_files(directory: Path, files: Iterable[Path], stop: Event | None = None) -> str:
    """SHA-256 over the names below `directory` and the contents of these files; `stop` likewise."""
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(f"{path.relative_to(directory)}\0{sha256_file(path, stop)}\n".encode())
    return total.hexdigest()


def _jsonable(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"not JSON: {type(value).__name__}")


def write_atomic(path: Path, content: str | bytes, *, root: Path | None = None) -> None:
    """Writes `content` to `path` atomically. Secrets in a text are redacted.

    Whenever the process dies, `path` holds either its old content or all of `content`. A link of that name is
    replaced, not followed. With `root`, links above the file may not lead out of `root` either.
    Raises: HarnessError "disk-full" or "not-writable"; UnsafeFile "file-leaves-root".
    """
    if root is not None:
        check_stays(path.parent, root)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = open_beside(path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                # A name from a filesystem may contain lone surrogates.
                file.write(
                    redact(content).encode(errors="backslashreplace") if isinstance(content, str) else content
                )
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> HarnessError:
    """The HarnessError for `error`: "disk-full", or "not-writable" for every other reason."""
    if error.errno in _NO_SPACE:
        return HarnessError(
            "disk-full",
            f"no space to write {path}; checkpoints that are whole stay whole",
            got=error.strerror,
            need="free space",
            fix=(
                f"free space in {path.parent} (old runs; harness inspect RUN --clean deletes interrupted"
                " saves), then go on with --resume"
            ),
        )
    if error.errno == errno.EISDIR:
        return HarnessError(
            "not-writable",
            f"cannot write {path}: a directory has its name",
            need="a file there, or nothing",
            fix=f"mv {word(path)} {word(f'{path}.old')}",
        )
    if isinstance(error, FileExistsError | NotADirectoryError):
        return HarnessError(
            "not-writable",
            f"cannot write {path}: a file is where a directory is needed",
            got=error.filename or str(path.parent),
            need="a directory",
            fix="name another directory, or move that file away",
        )
    return HarnessError(
        "not-writable",
        f"cannot write {path}: {error.strerror}",
        got=f"uid {os.getuid()}",
        need="a directory that this user may write",
        fix=(
            f"{may_be_written(path.parent)}; in compose set HARNESS_UID and HARNESS_GID to your own ids;"
            " a read-only volume: mount it without :ro"
        ),
    )


class RunDir:
    """One run. All reading and writing of its files goes through this class."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def held_out(self) -> Path:
        return self.path / HELD_OUT

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def started(self) -> bool:
        """True if training has begun here. From then on the run's recipe, data and statistics stay fixed."""
        return any((self.path / name).exists() for name in (MANIFEST, METRICS, CHECKPOINTS))

    def is_gone(self) -> bool:
        """True if what a started run always has is no longer here: it was moved, or deleted."""
        try:
            return not any(os.path.lexists(self.path / name) for name in (MANIFEST, METRICS))
        except OSError:
            return False

    def check_own(self) -> None:
        """Refuses a run with a directory that lies elsewhere.

        Otherwise the harness would write, prune or resume in another person's directory.

        Raises: UnsafeFile "file-leaves-root".
        """
        for path in [
            *_entries(self.path),
            *(
                child
                for folder in _entries(self.path)
                if not folder.is_symlink()
                for child in _entries(folder)
            ),
        ]:
            if path.is_symlink() and not path.is_file() and not _stays(self.path, path):
                target = os.path.realpath(path)
                raise UnsafeFile(
                    "file-leaves-root",
                    f"{path} is a link that leads out of the run; nothing was read or written there",
                    got=target,
                    need=f"a run whose directories lie inside {self.path}",
                    fix=(
                        f"if you made the link: rm {word(path)} && cp -r {word(target)} {word(path)}; if not,"
                        " a run of its own: --name NEW"
                    ),
                )

    def write(self, artifact: Artifact) -> Path:
        path = self.path / artifact.FILE
        # Bytes: redacted here as a value, so that the file is valid JSON whatever its texts are.
        write_atomic(path, f"{redact_json(artifact.text(indent=2))}\n".encode())
        return path

    def read(self, kind: type[A]) -> A | None:
        """The artifact, or None if its file does not exist.

        Raises: HarnessError "artifact-invalid" for a file of another form, "artifact-unreadable"; UnsafeFile.
        """
        path = self.path / kind.FILE
        fix = _mend(kind, path)
        try:
            data = read_json(path, self.path, ARTIFACT_BYTES, finite=True, unique=True)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise HarnessError("artifact-invalid", f"{path} is not JSON: {error}", fix=fix) from error
        except OSError as error:
            if isinstance(error, IsADirectoryError):
                # `rm` deletes no directory.
                fix = f"mv {word(path)} {word(f'{path}.old')}"
            elif isinstance(error, PermissionError):
                # The file is whole, for all that is known.
                fix = may_be_opened(path)
            raise HarnessError(
                "artifact-unreadable",
                f"{path} cannot be read: {error.strerror}",
                need="a file that this user may read",
                fix=fix,
            ) from error
        return parse(kind, data, where=str(path), code="artifact-invalid", fix=fix)

    def manifest_sha256(self) -> str | None:
        """SHA-256 of manifest.json's bytes; None if it does not exist, or is not a file of the run.

        Line ends count as those with which it was written, which a copy by Windows changes.
        """
        try:
            text = read_received(self.path / MANIFEST, self.path, ARTIFACT_BYTES)
            return hashlib.sha256(text.replace(b"\r\n", b"\n")).hexdigest()
        except (UnsafeFile, OSError):
            return None

    def current(self, kind: type[A], inputs: str) -> A | None:
        """The artifact if it exists and was computed from `inputs`; else None."""
        try:
            found = self.read(kind)
        except HarnessError:
            return None
        return found if found is not None and found.inputs == inputs else None


def _mend(kind: type[Artifact], path: Path) -> str:
    if not kind.RECORDED:
        return f"remove it and run the verb that writes it again: rm {word(path)}"
    return (
        "put a copy from before the damage there, since no verb writes the same again; if a newer harness"
        f" wrote it, use that one; to set it aside: mv {word(path)} {word(f'{path}.damaged')}"
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir()) if stat.S_ISDIR(folder.lstat().st_mode) else []
    except OSError:
        return []


def _stays(root: Path, path: Path) -> bool:
    try:
        return stays(root, path)
    except (OSError, RuntimeError, ValueError):
        return False


def cache_root() -> Path:
    """The directory of downloads and compiled answers: $HARNESS_CACHE, else ~/.cache/harness.

    Raises: HarnessError "home-unknown".
    """
    if given := os.environ.get("HARNESS_CACHE"):
        return Path(given)
    try:
        return Path.home() / ".cache" / "harness"
    except RuntimeError as error:
        raise HarnessError(
            "home-unknown",
            "this user has no home directory, so there is no place for the cache",
            got=f"uid {os.getuid()} without an entry in /etc/passwd, and HOME is not set",
            need="HARNESS_CACHE or HOME",
            fix="export HARNESS_CACHE=DIR",
        ) from error


def directory_bytes(path: Path) -> int:
    """Bytes of all files below `path`; 0 if it does not exist."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0


def runs_root() -> Path:
    """The directory of runs: $HARNESS_RUNS, else ./runs."""
    return Path(os.environ.get("HARNESS_RUNS", "runs"))


def new_run(name: str) -> RunDir:
    """The next free directory `<name>-001`, `<name>-002` … under the runs root."""
    numbers = [number for number, _ in _numbered(name)]
    return RunDir(runs_root() / f"{name}-{max(numbers, default=0) + 1:03d}")


def latest_run(name: str) -> RunDir | None:
    """The run of this name with the highest number. Only started runs count, if there are any."""
    runs = _numbered(name)
    candidates = [pair for pair in runs if pair[1].started] or runs
    return max(candidates, default=(0, None), key=lambda pair: pair[0])[1]


def _numbered(name: str) -> list[tuple[int, RunDir]]:
    root = runs_root()
    pattern = re.compile(re.escape(name) + r"-(\d{3,})")
    matches = [(pattern.fullmatch(path.name), path) for path in root.iterdir()] if root.is_dir() else []
    return [(int(match[1]), RunDir(path)) for match, path in matches if match]
