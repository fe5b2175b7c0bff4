"""The small world that a case lives in, and a record of every touch and read in it.

Part of `benchmarks.strangers`.

    home/               the user's secrets                       bait: neither read nor changed
    runs/best           a run of the user's own                  bait
    datasets/own        a dataset of the user's own              bait
    cache/              what was fetched before is bait; new entries may come
    runs/received, received/   the input; only the files that the verb writes may change
    work/, tmp/         the working directory and $TMPDIR: free
"""

from __future__ import annotations

import ctypes
import fnmatch
import hashlib
import os
import re
import shutil
import stat
import struct
from pathlib import Path

from benchmarks.strangers_files import remove
from benchmarks.strangers_values import Hostile

# path → what tells whether it was touched; a change of content that leaves all of these alone does not exist,
# for ctime cannot be set.
Tree = dict[str, tuple[int, ...]]
_FREE = ("work/*", "tmp/*")
_IN_OPEN, _IN_ISDIR, _IN_Q_OVERFLOW = 0x20, 0x40000000, 0x4000
# What the harness reads to know which words to leave out of its output.
_READ_TO_REDACT = (".netrc",)
_SECRETS = {
    "home/.ssh/id_ed25519": "-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----\n",
    "home/.bashrc": "export A={}\n",
    "home/.netrc": "machine example.org login me password {}\n",
    "home/pin.json": '{{"pin": "{}"}}',
    "home/notes.yaml": "name: {}\n",
    "home/log.txt": "Step 1: loss=0.5 {}\n",
    "datasets/own/meta/info.json": '{{"codebase_version": "v2.1", "own": "{}"}}',
    "cache/weights/pi05/params": "{}",
    "cache/huggingface/hub/blob": "{}",
}
# Our own tables, without colours, links and titles of others.
_SGR = re.compile(r"\x1b\[(?:[0-9;]{0,32}m|[0-9]{0,4}[ABCDGK]|\?25[lh])|\r")
_CONTROL = re.compile(
    r"(?![\n\t])[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MOST_SCANNED = 8 * 2**20


class World:
    """The directories of one worker; `run` is the user's own run that `runs/best` becomes a copy of."""

    def __init__(self, root: Path, run: Path) -> None:
        self.root, self._run = root.resolve(), run
        self.received_run, self.received = self.root / "runs" / "received", self.root / "received"
        self.tokens: list[bytes] = []
        self._notify: Notify | None = None
        self._bait: Tree = {}
        self.reset()

    def reset(self) -> None:
        """Lays out everything anew."""
        remove(self.root)
        words = {name: f"BAIT-{hashlib.sha256(name.encode()).hexdigest()[:24]}" for name in _SECRETS}
        for name, text in _SECRETS.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(text.format(words[name]))
        shutil.copytree(self._run, self.root / "runs" / "best")
        # What the compiler said of the honest run is not asked again.
        shutil.copytree(
            self._run.parent / "cache" / "plans", self.root / "cache" / "plans", dirs_exist_ok=True
        )
        for name in ("work", "tmp", "received", "cache/matplotlib"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        # A hash tells a file of few possible contents as well as the content does.
        digests = [hashlib.sha256((self.root / name).read_bytes()).hexdigest() for name in _SECRETS]
        self.tokens = [token.encode() for token in [*words.values(), *digests]]
        if self._notify is not None:
            self._notify.close()
        self._notify = Notify(
            [
                self.root / name
                for name in ("home", "runs/best", "datasets", "cache/weights", "cache/huggingface")
            ]
        )
        self._bait = self.tree()

    def clear(self) -> None:
        """Removes the last case's input, and what it left in the free places and the cache."""
        remove(self.received_run)
        for folder in (self.received, self.root / "work", self.root / "tmp"):
            for path in folder.iterdir():
                remove(path)
        for path in (self.root / "cache").iterdir():
            if f"cache/{path.name}" not in self._bait:
                remove(path)
        self.opened()

    def hostile(self, trap: str) -> Hostile:
        secrets = tuple(
            str(self.root / name)
            for name in _SECRETS
            if name not in ("home/.netrc", "datasets/own/meta/info.json")
        )
        places = (
            "home",
            "home/.ssh",
            "runs/best",
            "runs/best/checkpoints",
            "datasets/own",
            "cache",
            "cache/weights",
        )
        return Hostile(secrets, tuple(str(self.root / name) for name in places), trap)

    def environment(self) -> dict[str, str]:
        """What a verb is given: this world as its home, and no key."""
        cache = str(self.root / "cache")
        own = {
            "HOME": str(self.root / "home"),
            "HARNESS_RUNS": str(self.root / "runs"),
            "HARNESS_CACHE": cache,
            "HARNESS_DATASETS": str(self.root / "datasets"),
        }
        own |= {
            "TMPDIR": str(self.root / "tmp"),
            "MPLCONFIGDIR": f"{cache}/matplotlib",
            "HF_HOME": f"{cache}/huggingface",
        }
        kept = {
            name: os.environ[name]
            for name in ("PATH", "PYTHONPATH", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
            if name in os.environ
        }
        fixed = {
            "JAX_PLATFORMS": "cpu",
            "WANDB_MODE": "offline",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        return kept | own | fixed | {"PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "100", "LC_ALL": "C.UTF-8"}

    def tree(self) -> Tree:
        """Everything in the world as it is now; nothing is opened, no link is followed."""
        found: Tree = {}
        todo = [str(self.root)]
        while todo:
            for entry in os.scandir(todo.pop()):
                about = entry.stat(follow_symlinks=False)
                name = entry.path[len(str(self.root)) + 1 :]
                if stat.S_ISDIR(about.st_mode):
                    found[name] = (about.st_mode, about.st_ino)
                    todo.append(entry.path)
                else:
                    found[name] = (
                        about.st_mode,
                        about.st_ino,
                        about.st_size,
                        about.st_mtime_ns,
                        about.st_ctime_ns,
                    )
        return found

    def opened(self) -> list[str]:
        """The bait files that somebody has opened since the last call."""
        assert self._notify is not None
        found = [os.path.relpath(path, self.root) for path in self._notify.read()]
        return sorted({name for name in found if Path(name).name not in _READ_TO_REDACT})

    def touched(self, before: Tree, after: Tree, allowed: tuple[str, ...]) -> list[str]:
        """In words, what was made, changed or removed that no verb may touch; `allowed` are patterns of what
        this one writes.
        """
        found = [
            f"removed {name}"
            for name in before.keys() - after.keys()
            if not _matches(name, (*_FREE, *allowed))
        ]
        found += [
            f"changed {name}"
            for name in before.keys() & after.keys()
            if before[name] != after[name] and not _matches(name, (*_FREE, *allowed))
        ]
        made = [
            name for name in after.keys() - before.keys() if not _matches(name, (*_FREE, "cache/*", *allowed))
        ]
        return sorted(found + [f"made {name}" for name in made])

    def leaked(self, before: Tree, after: Tree) -> list[str]:
        """In words, what a new or changed file carries out: bait in its bytes, or a link."""
        found = []
        for name in after:
            if name in self._bait or before.get(name) == after[name]:
                continue
            path = self.root / name
            if stat.S_ISLNK(after[name][0]):
                found.append(f"{name} is a link to {os.readlink(path)}")
            elif stat.S_ISREG(after[name][0]) and self.holds_bait(path.open("rb").read(_MOST_SCANNED)):
                found.append(f"{name} holds bait")
        return found

    def holds_bait(self, data: bytes) -> bool:
        return any(token in data for token in self.tokens)

    def escaped(self, path: str) -> bool:
        """Whether a path that was written to lies outside of this world."""
        place = os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))
        return not place.startswith(
            (f"{self.root}/", "/dev/null", "/dev/tty", "/proc/self/", f"/proc/{os.getpid()}/", "/dev/shm/")
        )


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def raw_controls(text: str, *, coloured: bool) -> list[str]:
    """The control characters of an output that a terminal would obey; what rich writes itself is allowed
    where colours were asked for.
    """
    return sorted({repr(found) for found in _CONTROL.findall(_SGR.sub("", text) if coloured else text)})


class Notify:
    """Tells which files below some directories were opened, by whatever code (Linux's inotify)."""

    def __init__(self, roots: list[Path]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify is not there")
        self._places: dict[int, str] = {}
        for folder in [folder for root in roots for folder, _, _ in os.walk(root)]:
            watch = self._libc.inotify_add_watch(self._fd, os.fsencode(folder), _IN_OPEN)
            if watch < 0:
                raise OSError(ctypes.get_errno(), "inotify cannot watch", folder)
            self._places[watch] = folder
        self.read()

    def read(self) -> list[str]:
        found: list[str] = []
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return found
            at = 0
            while at < len(data):
                watch, mask, _, length = struct.unpack_from("iIII", data, at)
                name = data[at + 16 : at + 16 + length].rstrip(b"\0")
                at += 16 + length
                if mask & _IN_OPEN and not mask & _IN_ISDIR and watch in self._places:
                    found.append(os.path.join(self._places[watch], os.fsdecode(name)))

    def close(self) -> None:
        os.close(self._fd)
