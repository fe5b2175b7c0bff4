"""Removes secrets from text before it is written or shown.

Known secrets are those that this process was given: variables with a telling name, passwords in addresses,
those of ~/.netrc, the hub's token file. Unknown secrets are recognized by their form: a password in an
address, a signed address, a token with a telling prefix. 40 hexadecimal digits may be a commit or a key, so
such a key is found by its variable or its file, not by its form.
"""

from __future__ import annotations

import json
import netrc
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from pydantic_core import to_json

from harness.errors import HarnessError
from harness.received.text import for_terminal

_NAMED = re.compile(r"(?i)(?:^|_)(?:api_?key|key|token|secret|password|passwd|pass|credentials?)(?:$|_)")
# A shorter value is more likely a word that occurs elsewhere too.
_SHORTEST = 8
_MARK = "[redacted]"
# A proxy may also be given without a scheme: me:password@host:3128.
_PASSWORD = re.compile(r"(?:://|^)[^/\s@:]*:([^/\s@]+)@")
_NAME = r"\b\w*(?:api_?key|token|secret|password|passwd)\b"
_VALUE = "[A-Za-z0-9_/+.-]{16,}"
# None of these takes a quote or a backslash, so finished JSON stays JSON: there, a backslash may belong to a
# quote inside of a string.
_FORMS = (
    # scheme://user:password@host, and a user alone, which is how git is given tokens.
    (re.compile(r"://[^/\s@\"'<>\\]+@"), f"://{_MARK}@"),
    (
        re.compile(
            r"([?&](?:key|api_?key|token|access_token|sig|signature|password|x-(?:amz|goog)-\w+)=)[^&\s\"'<>\\]+",
            re.IGNORECASE,
        ),
        rf"\1{_MARK}",
    ),
    (re.compile(r"\b((?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{16,}"), rf"\1{_MARK}"),
    (
        re.compile(
            r"\b(?:hf_[A-Za-z0-9]{30,}|wandb_v\d_\w{20,}|gh[pousr]_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{30,}|AKIA[0-9A-Z]{16})"
        ),
        _MARK,
    ),
    # "name": 123 in JSON. The mark is a string there, so that the text stays JSON.
    (re.compile(rf"({_NAME}\"\s*:\s*){_VALUE}", re.IGNORECASE), rf'\1"{_MARK}"'),
    # NAME=value and "name": "value", as logs of libraries print them.
    (re.compile(rf"({_NAME}[\"']?\s*[:=]\s*[\"']?){_VALUE}", re.IGNORECASE), rf"\1{_MARK}"),
)
_NAMES_A_SECRET = re.compile(rf"{_NAME}\Z", re.IGNORECASE)
_MAY_BE_ONE = re.compile(_VALUE)


def redact(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """`text` with "[redacted]" in place of every secret that is known or has the form of one.

    For logs. What is dumped as JSON goes through `redact_value` before it is dumped.
    """
    return _redacted(text, known_secrets(environ))


def redact_value(value: Any, environ: Mapping[str, str] = os.environ) -> Any:
    """A JSON value with every string in it redacted, keys included, so that it can be dumped as valid JSON.

    Under a key that names a secret, a string or a number of the form of one becomes "[redacted]".
    """
    return _redacted_value(value, known_secrets(environ))


def redact_json(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """JSON text whose value is `redact_value` of that of `text`; `text` itself if that changes nothing.

    A text that changes is indented by two.
    """
    value = json.loads(text)
    cleaned = redact_value(value, environ)
    return text if cleaned == value else to_json(cleaned, indent=2).decode()


def _redacted_value(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, dict):
        return {
            _redacted(key, secrets): (
                _MARK if _is_named_secret(key, child) else _redacted_value(child, secrets)
            )
            for key, child in value.items()
        }
    if isinstance(value, list):
        return [_redacted_value(child, secrets) for child in value]
    return _redacted(value, secrets) if isinstance(value, str) else value


def _is_named_secret(key: str, value: Any) -> bool:
    if not isinstance(value, str | int | float) or not _NAMES_A_SECRET.search(key):
        return False
    return _MAY_BE_ONE.match(value if isinstance(value, str) else json.dumps(value)) is not None


def _redacted(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, _MARK)
    for form, mark in _FORMS:
        text = form.sub(mark, text)
    return text


def holds_secret(text: str) -> bool:
    return redact(text) != text


def known_secrets(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The secrets that this process was given, in every form in which a text may contain them.

    The longest come first, so that none hides in another.
    """
    values = {
        value.strip() for name, value in environ.items() if _NAMED.search(name) and not value.startswith("/")
    }
    values |= {match[1] for value in environ.values() for match in _PASSWORD.finditer(value)}
    values |= set(_of_netrc(_changed(netrc := netrc_path(environ)), netrc)) | set(
        _of_file(token_file(environ))
    )
    values = {value for value in values if len(value) >= _SHORTEST}
    forms = {form for value in values for form in (value, quote(value, safe=""), json.dumps(value)[1:-1])}
    return sorted(forms, key=lambda form: (-len(form), form))


def netrc_path(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("NETRC") or Path(environ.get("HOME", "/")) / ".netrc")


def token_file(environ: Mapping[str, str]) -> Path:
    """The file in which the hub's client keeps its login."""
    home = environ.get("HF_HOME") or str(Path(environ.get("HOME", "/")) / ".cache" / "huggingface")
    return Path(environ.get("HF_TOKEN_PATH") or Path(home) / "token")


class Cleaned:
    """A text stream that writes its text after `redact`, with control characters as escapes.

    What a reader that is gone (`| head -1`) no longer takes goes nowhere: the exit code still says the
    answer. Any other failure raises HarnessError "output-failed", or with `forgiving` goes nowhere too: a log
    on a full disk ends no run.
    """

    def __init__(self, stream: TextIO, *, forgiving: bool = False) -> None:
        self._stream, self._forgiving = stream, forgiving

    def write(self, text: str) -> int:
        # Click tries a stream with an empty text, and swallows what that raises; bytes have to be refused.
        if text == "":
            return 0
        try:
            self._stream.write(for_terminal(redact(text)))
        except OSError as error:
            self._failed(error)
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        """Has what is written from here on, and what is still buffered, go nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if not self._forgiving and not isinstance(error, BrokenPipeError):
            raise HarnessError(
                "output-failed",
                "the answer could not be written to stdout",
                got=error.strerror,
                need="a terminal, a pipe or a file with room",
                fix="free space where the output goes, or send it elsewhere",
            ) from error

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


@lru_cache(maxsize=4)
def _of_netrc(_: float | None, path: Path) -> tuple[str, ...]:
    try:
        return tuple(entry[2] for entry in netrc.netrc(str(path)).hosts.values() if entry[2])
    except (OSError, netrc.NetrcParseError):
        return ()


def _of_file(path: Path) -> tuple[str, ...]:
    try:
        return (path.read_text(errors="replace").strip(),)
    except OSError:
        return ()
