"""Checks whether XLA accepts the flags of this environment.

XLA ends the process at the first unknown flag, so the check runs in a child process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

_TIMEOUT_S = 60
# XLA reads its flags when it first needs an option. This needs no device, and a quarter of the time of JAX.
_START = "from jaxlib import xla_client; xla_client.CompileOptions()"
# The messages that XLA logs before it ends the process. Source: openxla/xla, xla/parse_flags_from_env.cc and
# xla/tsl/util/command_line_flags.cc.
_UNKNOWN = re.compile(r"Unknown flags? in XLA_FLAGS:((?: +\S+)+)")
_VALUE = re.compile(r"Couldn't interpret value \S* for flag ([\w-]+)")
_FILE = re.compile(r"Could not open file \"([^\"\n]*)\" to read flags")


class Refused(NamedTuple):
    """The flags that XLA refuses, and the command that removes them."""

    got: str
    fix: str


def in_order(environ: Mapping[str, str]) -> str:
    """XLA_FLAGS with the flag by which several processes on CPUs compute (`harness.train.cluster`)."""
    return f"{environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()


def refused_flags(environ: Mapping[str, str], python: str = sys.executable) -> Refused | None:
    """The flags in XLA_FLAGS of `environ` that XLA refuses; None if it accepts all.

    Raises: subprocess.TimeoutExpired if XLA does not read them within a minute.
    """
    flags = environ.get("XLA_FLAGS", "")
    if not flags.strip():
        return None
    # XLA reads its flags on any device. The CPU starts fastest, and holds no GPU. A log level would hide
    # which value is wrong, so it is removed.
    own = {name: value for name, value in environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"} | {
        "JAX_PLATFORMS": "cpu"
    }
    child = subprocess.run(
        [python, "-c", _START], env=own, capture_output=True, timeout=_TIMEOUT_S, check=False, cwd=os.sep
    )
    return _refused(flags, child.stderr.decode(errors="replace")) if child.returncode else None


def _refused(flags: str, said: str) -> Refused | None:
    unknown, value, file = _UNKNOWN.search(said), _VALUE.search(said), _FILE.search(said)
    if unknown:
        named = unknown[1].split()
        return Refused(
            f"XLA_FLAGS has flags that this XLA does not know: {' '.join(named)}", _without(flags, named)
        )
    if value:
        named = [flag for flag in flags.split() if flag.partition("=")[0].lstrip("-") == value[1]]
        return Refused(
            f"XLA_FLAGS has a value that XLA cannot read: {' '.join(named) or value[1]}",
            _without(flags, named),
        )
    if file:
        return Refused(
            f"XLA_FLAGS={flags} is taken for the name of a file with flags, since it does not begin with --",
            "unset XLA_FLAGS",
        )
    return None


def _without(flags: str, named: list[str]) -> str:
    kept = " ".join(flag for flag in flags.split() if flag not in named)
    return f"unset XLA_FLAGS, or leave that out: export XLA_FLAGS='{kept}'" if kept else "unset XLA_FLAGS"
