"""The list of everything in an image, and its digest, from a directory or from an exported tar.

    python -m harness.image.contents ROOT        the digest of a root filesystem
    docker export CONTAINER | python -m harness.image.contents -

Only the standard library is used: the same program runs in a build, on the host and in a test. An entry is
(path, type, mode, owner, link target, sha256). The digest is the SHA-256 over the lines of all entries,
sorted by path. No time is part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

# What this room leaves in an image. The list cannot contain itself.
LISTS = "opt/harness/image"
LIST, SUMMARY, BOM = f"{LISTS}/contents.jsonl", f"{LISTS}/summary.json", f"{LISTS}/bom.cdx.json"
# What the engine or compose puts into a container. None of it comes from the image.
_MOUNTED = frozenset(
    {
        *("proc", "sys", "dev", "tmp", "runs", "datasets", "cache", "checkout"),
        *(".dockerenv", "run/.containerenv", "run/harness", "run/secrets", "run/host"),
        *("etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/mtab"),
        *("sbin/docker-init", "usr/sbin/docker-init", "bin/docker-init", "usr/bin/docker-init"),
    }
)
_OWN = frozenset({LIST, SUMMARY})
# These two name who uses the image. Each checkout has its own owner, who changes nothing that is computed.
_USERS = frozenset({"etc/passwd", "etc/group"})
_NAMES = (b"harness:", b"caller:")
# Texts that say whose a file is (`harness.image.owners`). They are kept while a tree is read.
_KEPT_DIRECTORIES = ("var/lib/dpkg/info/", f"{LISTS}/")
_KEPT = frozenset({"var/lib/dpkg/status", "etc/os-release", "usr/lib/os-release", "opt/harness/revision"})
# In the place of the SHA-256 of a file that this user may not read.
UNREAD = "?"
_PIECE = 1 << 20
# hashlib releases the interpreter while it hashes.
_THREADS = min(8, os.cpu_count() or 1)


class Entry(NamedTuple):
    """One name of a tree.

    `path` has no leading slash. `kind` is f, d, l, c, b, p or s. `mode` holds the permission bits, `owner` is
    "UID:GID". `target` is that of a link. `sha256` is empty for all but files, and UNREAD for a file
    that this user may not read.
    """

    path: str
    kind: str
    mode: int
    owner: str
    target: str
    sha256: str

    @property
    def line(self) -> str:
        """The entry as one line of the list."""
        return json.dumps(
            [self.path, self.kind, f"{self.mode:04o}", self.owner, self.target, self.sha256],
            separators=(",", ":"),
        )


class Tree(NamedTuple):
    """The entries of a root filesystem by path, and the texts that say whose they are.

    `closed` are the directories that this user may not list; nothing below them is among the entries.
    """

    entries: dict[str, Entry]
    texts: dict[str, bytes]
    closed: tuple[str, ...] = ()

    def with_file(self, path: str, content: bytes) -> Tree:
        """The tree with one more file of root's, mode 0644, as COPY makes it."""
        entry = Entry(path, "f", 0o644, "0:0", "", hashlib.sha256(content).hexdigest())
        return self._replace(entries=self.entries | {path: entry}, texts=self.texts | {path: content})

    def completed(self, known: Mapping[str, Entry]) -> Tree:
        """The tree with the hashes of `known` for files that this user may not read.

        Only root may read a few files of a system. Nothing that such a user starts reads them either.
        """
        found = dict(self.entries)
        for path, entry in self.entries.items():
            if entry.sha256 == UNREAD and path in known:
                found[path] = entry._replace(sha256=known[path].sha256)
        below = tuple(f"{path}/" for path in self.closed)
        found |= {path: entry for path, entry in known.items() if below and path.startswith(below)}
        return self._replace(entries=found)


def counts(path: str) -> bool:
    """True if the name belongs to the image's contents; False for what a container is given, and our list."""
    if path in _OWN or path in _MOUNTED:
        return False
    parts = path.split("/")
    return not any("/".join(parts[:depth]) in _MOUNTED for depth in (1, 2) if depth < len(parts))


def listing(entries: Mapping[str, Entry]) -> str:
    """The list: a line each entry, sorted by path."""
    return "".join(f"{entries[path].line}\n" for path in sorted(entries))


def digest(entries: Mapping[str, Entry]) -> str:
    """The content digest: "sha256:" and 64 digits."""
    return f"sha256:{hashlib.sha256(listing(entries).encode()).hexdigest()}"


def parse(text: str) -> dict[str, Entry]:
    """The entries of a list, by path.

    Raises: ValueError for a line that is none.
    """
    found = {}
    for line in text.splitlines():
        body = json.loads(line)
        if not (isinstance(body, list) and len(body) == 6 and all(isinstance(part, str) for part in body)):
            raise ValueError(f"no line of a list of contents: {line[:80]}")
        path, kind, mode, owner, target, sha256 = body
        found[path] = Entry(path, kind, int(mode, 8), owner, target, sha256)
    return found


def of_directory(root: Path) -> Tree:
    """The tree below `root`. What this user may not read has "?" for its hash, or is absent below a closed
    directory.
    """
    found: dict[str, Entry] = {}
    files: list[str] = []
    closed: list[str] = []
    for path, status in _walk(root, closed):
        kind = _kind(status.st_mode)
        target = os.readlink(root / path) if kind == "l" else ""
        owner = f"{status.st_uid}:{status.st_gid}"
        found[path] = Entry(path, kind, _bits(status.st_mode, kind), owner, target, "")
        if kind == "f":
            files.append(path)
    for path, sha256 in hashes(root, files).items():
        found[path] = found[path]._replace(sha256=sha256)
    texts = {}
    for path in files:
        if _is_kept(path) and found[path].sha256 != UNREAD:
            texts[path] = (root / path).read_bytes()
    return Tree(found, texts, tuple(closed))


def of_tar(stream: IO[bytes]) -> Tree:
    """The tree of a tar of a root filesystem, as `docker export` writes it.

    Raises: tarfile.TarError for what is no tar.
    """
    found: dict[str, Entry] = {}
    texts: dict[str, bytes] = {}
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            path = os.path.normpath(member.name).lstrip("/")
            if path in _OWN and member.isreg() and (own := archive.extractfile(member)) is not None:
                texts[path] = own.read()
            if path in ("", ".") or not counts(path):
                continue
            owner = f"{member.uid}:{member.gid}"
            kind = next((name for is_it, name in _MEMBERS if is_it(member)), "s")
            if member.islnk():
                # The other name stands earlier in the archive.
                first = found.get(os.path.normpath(member.linkname).lstrip("/"))
                if first is None:
                    raise tarfile.ReadError(f"{member.name} is another name of a file that is no content")
                found[path] = first._replace(path=path)
                continue
            target = member.linkname if kind == "l" else ""
            sha256 = ""
            if kind == "f":
                file = archive.extractfile(member)
                assert file is not None
                sha256, kept = _sha256(path, iter(lambda file=file: file.read(_PIECE), b""))  # type: ignore[misc]
                texts |= {path: kept} if kept is not None and _is_kept(path) else {}
            found[path] = Entry(path, kind, _bits(member.mode, kind), owner, target, sha256)
    return Tree(found, texts)


def _walk(root: Path, closed: list[str]) -> Iterator[tuple[str, os.stat_result]]:
    """(path, its status) of every name below `root` that counts. No link is followed.

    `closed` receives the directories that cannot be listed.
    """
    todo = [""]
    while todo:
        folder = todo.pop()
        try:
            names = os.listdir(root / folder)
        except PermissionError:
            closed.append(folder)
            continue
        for name in names:
            path = f"{folder}/{name}" if folder else name
            if not counts(path):
                continue
            status = os.lstat(root / path)
            yield path, status
            if stat.S_ISDIR(status.st_mode):
                todo.append(path)


def look(root: Path) -> dict[str, os.stat_result]:
    """Path → status of every name below `root` that counts and that this user can see. Nothing is read."""
    return dict(_walk(root, []))


def hashes(root: Path, paths: Collection[str]) -> dict[str, str]:
    """Path → SHA-256 of each of these files below `root`, as an entry has it."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(paths, pool.map(lambda path: _hashed(root, path), paths), strict=True))


def _hashed(root: Path, path: str) -> str:
    try:
        with (root / path).open("rb") as file:
            if path in _USERS:
                return _sha256(path, [file.read()])[0]
            return hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError:
        return UNREAD


def _sha256(path: str, pieces: Iterable[bytes]) -> tuple[str, bytes | None]:
    """(SHA-256 of the pieces, the content itself if it is kept)."""
    if path in _USERS or _is_kept(path):
        content = b"".join(pieces)
        counted = _without_ids(content) if path in _USERS else content
        return hashlib.sha256(counted).hexdigest(), content
    total = hashlib.sha256()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest(), None


def _is_kept(path: str) -> bool:
    if path.startswith("var/lib/dpkg/info/"):
        return path.endswith(".list")
    return path in _KEPT or path.startswith(_KEPT_DIRECTORIES) or is_record(path)


def is_record(path: str) -> bool:
    """True for the files of an installed Python package that say what is in it, and under which licence."""
    folder, _, name = path.rpartition("/")
    if name in ("LICENSE", "LICENSE.txt", "LICENSE.md"):
        return folder.removesuffix("/licenses").endswith(".dist-info")
    return name in ("RECORD", "METADATA") and folder.endswith(".dist-info")


def _without_ids(content: bytes) -> bytes:
    """/etc/passwd or /etc/group, with the ids of "harness" and "caller" left out."""
    lines = []
    for line in content.splitlines(keepends=True):
        parts = line.split(b":")
        if line.startswith(_NAMES) and len(parts) >= 4:
            ids = (2, 3) if len(parts) == 7 else (2,)
            line = b":".join(b"-" if at in ids else part for at, part in enumerate(parts))  # noqa: PLW2901
        lines.append(line)
    return b"".join(lines)


def _bits(mode: int, kind: str) -> int:
    # The permissions of a link mean nothing, and a tar may have others.
    return 0o777 if kind == "l" else stat.S_IMODE(mode)


def _kind(mode: int) -> str:
    return next((name for is_it, name in _KINDS if is_it(mode)), "?")


_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISREG, "f"),
    (stat.S_ISDIR, "d"),
    (stat.S_ISLNK, "l"),
    (stat.S_ISCHR, "c"),
    (stat.S_ISBLK, "b"),
    (stat.S_ISFIFO, "p"),
    (stat.S_ISSOCK, "s"),
)
_MEMBERS: tuple[tuple[Callable[[tarfile.TarInfo], bool], str], ...] = (
    (tarfile.TarInfo.isreg, "f"),
    (tarfile.TarInfo.isdir, "d"),
    (tarfile.TarInfo.issym, "l"),
    (tarfile.TarInfo.ischr, "c"),
    (tarfile.TarInfo.isblk, "b"),
    (tarfile.TarInfo.isfifo, "p"),
)


def main(arguments: list[str]) -> int:
    """Prints the digest of a root filesystem, or of a tar on standard input; with --list its list."""
    paths = [argument for argument in arguments if argument != "--list"]
    if len(paths) != 1:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    tree = of_tar(sys.stdin.buffer) if paths == ["-"] else of_directory(Path(paths[0]))
    sys.stdout.write(listing(tree.entries) if "--list" in arguments else f"{digest(tree.entries)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
