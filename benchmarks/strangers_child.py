"""The process of one case: it runs the verbs without privileges, within limits, and overheard.

Part of `benchmarks.strangers`.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.strangers_world import World

_ADDRESS_SPACE = 8 * 2**30
_FILE_BYTES = 2**30
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit event → which of its arguments are paths that change.
_CHANGES = {
    **dict.fromkeys(
        ("os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.chown"), slice(0, 1)
    ),
    **dict.fromkeys(("os.rename", "os.link"), slice(0, 2)),
    "os.symlink": slice(1, 2),
}
# Planted in the inputs, and outside of the world.
_FORBIDDEN = ("/etc/passwd", "/dev/zero", "/proc/self/environ", "/proc/self/mem")
# Programs that a verb may start: it asks the driver, git, the linker and the fonts about this machine, and
# itself for other processes.
_PROGRAMS = ("fc-list", "git", "nvidia-smi", "ldconfig", "uname", "lsb_release", Path(sys.executable).name)
_HERE = ("127.0.0.1", "localhost", "::1", "", None)


class Call(NamedTuple):
    """One verb with its options, or "fetch_tree ADDRESS" and "fetch_file ADDRESS" (functions of
    `harness.download.cache`).

    `writes`: what it may write, as patterns below the world. `servers`: addresses that the user himself
    typed.
    """

    args: tuple[str, ...]
    writes: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    coloured: bool = False
    servers: tuple[str, ...] = ()


def live(calls: list[Call], world: World, logs: Path, pipe: int) -> None:
    """Makes the calls one after another, and tells `pipe` of each when it begins and when it has ended.

    Never returns.
    """
    try:
        _confine(world)
        noted = _Noted(world)
        sys.addaudithook(noted.hear)
        threading.excepthook = noted.thread_ended
        for i, call in enumerate(calls):
            _tell(pipe, {"began": i})
            code = _perform(call, noted, logs / f"{i}.out", logs / f"{i}.err")
            _tell(pipe, {"ended": i, "code": code, **noted.found})
        os._exit(0)
    except BaseException:
        os.write(pipe, (json.dumps({"failed": traceback.format_exc()}) + "\n").encode())
        os._exit(70)


def _tell(pipe: int, message: dict[str, Any]) -> None:
    os.write(pipe, (json.dumps(message) + "\n").encode())


def _confine(world: World) -> None:
    os.setsid()
    libc = ctypes.CDLL(None)
    libc.prctl(1, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Also root then obeys the permissions of files: capset(2) with nothing in it.
    libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
    os.chdir(world.root / "work")
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    # A server that answers 503 is asked again after a while: not what is tried here.
    wait = time.sleep
    time.sleep = lambda seconds: wait(min(float(seconds), 0.002))
    _no_compiler()


def _no_compiler() -> None:
    """A plan that nobody has asked for before is compiled for a minute, which no content of a file changes:
    here that is refused at once.
    """
    from harness.errors import HarnessError
    from harness.plan import compile as compiler
    from harness.plan import serving

    def refuse(*_: object, **__: object) -> Any:
        raise HarnessError("compile-failed", "nothing is compiled here", fix="--gpu NAME")

    compiler.in_child = serving.in_child = refuse


def _perform(call: Call, noted: _Noted, out: Path, err: Path) -> int:
    """The exit code of one call, its output in the two files."""
    for number, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8", errors="strict")
        for number in (1, 2)
    )
    noted.begin(call)
    os.environ.update(dict(call.environment))
    os.environ.pop("FORCE_COLOR", None)
    if call.coloured:
        os.environ["FORCE_COLOR"] = "1"
    try:
        return (
            _in_process(call, noted) if call.args[0] in ("fetch_tree", "fetch_file") else _verb(call, noted)
        )
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()


def _verb(call: Call, noted: _Noted) -> int:
    from harness import cli
    from harness.errors import HarnessError

    app = cli.app

    def watched() -> None:
        try:
            app()
        except (SystemExit, HarnessError):
            raise
        except BaseException as error:
            noted.error(error)
            raise

    sys.argv = ["harness", *call.args]
    cli.app = watched  # type: ignore[assignment]
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException as error:
        noted.error(error)
        return 99
    finally:
        cli.app = app
    return 0


def _in_process(call: Call, noted: _Noted) -> int:
    from harness.download import cache as download
    from harness.errors import HarnessError

    try:
        found = getattr(download, call.args[0])(call.args[1])
    except HarnessError as error:
        print(f"error [{error.code}]", file=sys.stderr)
        return 2
    except BaseException as error:
        noted.error(error)
        return 99
    print(type(found).__name__)
    return 0


class _Noted:
    """What a case did beyond its output, by Python's audit events."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.found: dict[str, list[str]] = {}
        self._typed_here = False

    def begin(self, call: Call) -> None:
        self.found = {"errors": [], "wrote": [], "read": [], "connected": [], "started": []}
        self._typed_here = bool(call.servers)

    def error(self, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/harness/" in frame.filename]
        place = (ours or frames)[-1] if frames else None
        where = f"{place.filename.split('/harness/')[-1]}:{place.lineno} {place.name}" if place else "?"
        text = f"{type(error).__name__} at {where}: {str(error)[:160]!r}"
        if text not in self.found["errors"]:
            self.found["errors"].append(text)

    def thread_ended(self, hook: threading.ExceptHookArgs) -> None:
        if hook.exc_value is not None:
            self.error(hook.exc_value)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            self._opened(args[0], args[2])
        elif event in _CHANGES:
            self._changed(event, args)
        elif event in ("socket.connect", "socket.sendto"):
            self._connected(args[0], args[1])
        elif event == "socket.getaddrinfo" and self.found and args[0] not in _HERE:
            self._note("connected", f"asked for the address of {args[0]}")
            raise socket.gaierror(-3, "no network here")
        elif event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system"):
            program = (
                args[0]
                if isinstance(args[0], str)
                else os.fsdecode(args[0])
                if isinstance(args[0], bytes)
                else str(args[0])
            )
            if Path(program).name not in _PROGRAMS:
                self._note("started", program)

    def _note(self, kind: str, text: str) -> None:
        if self.found and text not in self.found[kind] and len(self.found[kind]) < 20:
            self.found[kind].append(text)

    def _opened(self, path: Any, flags: Any) -> None:
        if isinstance(path, int) or path is None:
            return
        name = os.path.abspath(os.fsdecode(path)) if isinstance(path, (str, bytes, os.PathLike)) else ""
        if isinstance(flags, int) and flags & _WRITES:
            if self._world.escaped(name):
                self._note("wrote", name)
        elif os.path.realpath(name).replace(f"/proc/{os.getpid()}/", "/proc/self/") in _FORBIDDEN:
            self._note("read", name)

    def _changed(self, event: str, args: tuple[Any, ...]) -> None:
        folder = args[-1] if event != "os.truncate" and isinstance(args[-1], int) and args[-1] > 2 else None
        for path in args[_CHANGES[event]]:
            if isinstance(path, (str, bytes, os.PathLike)):
                base = os.path.realpath(f"/proc/self/fd/{folder}") if folder is not None else "."
                place = os.path.join(base, os.fsdecode(path))
                # A directory that is there already is not made.
                if self._world.escaped(place) and not (event == "os.mkdir" and os.path.isdir(place)):
                    self._note("wrote", place)

    def _connected(self, place: Any, address: Any) -> None:
        # Whoever typed an address of this machine may be led to another of it.
        if place.family not in (socket.AF_INET, socket.AF_INET6) or (
            address[0] in _HERE and self._typed_here
        ):
            return
        self._note("connected", f"{address[0]}:{address[1]}")
        if address[0] not in _HERE:
            raise OSError(101, "no network here")
