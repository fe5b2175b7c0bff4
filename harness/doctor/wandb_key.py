"""Checks the form of wandb's key. Contacts no server, and never shows a part of the key."""

from __future__ import annotations

import netrc
import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from harness.artifacts.doctor import Finding
from harness.doctor.situation import NotNeeded, Situation, error, warning
from harness.redact import netrc_path

# Keys have 40 characters, newer ones 86. A self-hosted server puts a word and a dash before them. Source: the
# report that started this project ("API key must be 40 characters long, yours was 86"); wandb
# sdk/lib/wbauth/validation.py.
_LENGTHS = (40, 86)
_KEY = re.compile(r"[A-Za-z0-9_]+")
_PREFIX = re.compile(r"(?<![A-Za-z0-9])[A-Za-z0-9]++-")
_SERVER = "https://api.wandb.ai"
_FIX = "copy the key again from your wandb user settings: export WANDB_API_KEY=…; or WANDB_MODE=offline"


def wandb_key(situation: Situation) -> Iterator[Finding]:
    """Checks that the key has the form of a key. Without a key the run logs offline."""
    mode = situation.environ.get("WANDB_MODE", "")
    if mode in ("offline", "disabled", "dryrun"):
        raise NotNeeded(f"WANDB_MODE={mode}")
    where, key = _key(situation.environ)
    if not key:
        if mode == "online":
            yield error(
                "wandb key", "WANDB_MODE=online and no key", "a key, since nobody is there to be asked", _FIX
            )
            return
        raise NotNeeded("there is no key, so the run logs offline")
    problem = _problem(key)
    if problem is not None:
        yield error(
            "wandb key", f"{where}: {problem}", "40 characters, or 86 for a key of the newer kind", _FIX
        )
    elif where != "WANDB_API_KEY" and mode != "online":
        yield warning(
            "wandb key",
            f"there is one in {where}, which is not used",
            "WANDB_API_KEY to log online",
            "export WANDB_API_KEY, or WANDB_MODE=online",
        )


def _key(environ: Mapping[str, str]) -> tuple[str, str | None]:
    if "WANDB_API_KEY" in environ:
        return "WANDB_API_KEY", environ["WANDB_API_KEY"]
    path = netrc_path(environ)
    host = urlsplit(environ.get("WANDB_BASE_URL") or _SERVER).hostname or ""
    try:
        entry = netrc.netrc(str(path)).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return path.name, None
    return path.name, entry[2] if entry else None


def _problem(key: str) -> str | None:
    """The error in the form of a key, without a character of the key; None if there is none."""
    if key != key.strip():
        return "a newline or a space stands around it"
    if key[0] in "\"'" or key[-1] in "\"'":
        return "quotation marks are part of it"
    secret = key
    prefix = _PREFIX.match(key)
    if prefix is not None and len(key) - prefix.end() in _LENGTHS:
        secret = key[prefix.end() :]
    if not _KEY.fullmatch(secret) and not (len(secret) in _LENGTHS and re.fullmatch(r"[\w-]+", secret)):
        return f"it has a character that no key has, among {len(secret)}"
    if len(secret) in _LENGTHS:
        return None
    nearest = min(_LENGTHS, key=lambda length: abs(length - len(secret)))
    return f"it has {len(secret)} characters: {'truncated' if len(secret) < nearest else 'too long'}"
