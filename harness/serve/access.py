"""Who may talk to the server: the key, the address it listens on, and how a key is compared."""

from __future__ import annotations

import errno
import hashlib
import hmac
import ipaddress
import socket
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.received.denied import may_be_opened
from harness.received.files import read_received
from harness.received.text import controls

# openpi-client sends `Authorization: Api-Key KEY`. Source: openpi
# packages/openpi-client/src/openpi_client/websocket_client_policy.py, commit 15a9616.
SCHEME = "Api-Key"
_LEAST_CHARACTERS, _MOST_BYTES = 16, 4096


class Key:
    """A key, kept as its hash: a wrong one of any length is compared in the same time."""

    def __init__(self, key: str) -> None:
        self._digest = hashlib.sha256(key.encode()).digest()

    def opens(self, authorization: list[str]) -> bool:
        """Whether these headers `Authorization`, of which there must be one, hold the key."""
        sent = authorization[0] if len(authorization) == 1 else ""
        scheme, _, key = sent.partition(" ")
        told = hashlib.sha256(key.strip().encode(errors="surrogateescape")).digest()
        same = hmac.compare_digest(told, self._digest)
        return same and scheme.lower() == SCHEME.lower()


def read_key(file: Path) -> Key:
    """The key in the first line of a file, to compare others with.

    Raises: as `key_in`.
    """
    return Key(key_in(file))


def key_in(file: Path) -> str:
    """The key in the first line of a file, as a client sends it.

    Raises: HarnessError "api-key-unreadable", "api-key-invalid"; UnsafeFile.
    """
    try:
        real = file.resolve()
        text = read_received(real, real.parent, _MOST_BYTES).decode("ascii").partition("\n")[0].strip()
    except (OSError, RuntimeError) as error:
        raise HarnessError(
            "api-key-unreadable",
            f"the key cannot be read from {file}",
            got=getattr(error, "strerror", None) or str(error),
            need="a file with the key in its first line, that this user may read",
            # Else into a new file: the one that was named may hold something else.
            fix=may_be_opened(file)
            if isinstance(error, PermissionError)
            else (
                "umask 077; python -c 'import secrets; print(secrets.token_urlsafe(32))' > KEY, then"
                " --api-key-file KEY"
            ),
        ) from error
    except ValueError:
        text = ""
    if len(text) < _LEAST_CHARACTERS or controls(text) or " " in text:
        raise HarnessError(
            "api-key-invalid",
            f"{file} holds no key",
            got=f"{len(text)} characters" if text else "nothing, or not ASCII text",
            need=f"one line of at least {_LEAST_CHARACTERS} characters, without spaces",
            # Into a new file: the one that was named may hold something else.
            fix=(
                "umask 077; python -c 'import secrets; print(secrets.token_urlsafe(32))' > KEY, then"
                " --api-key-file KEY"
            ),
        )
    return text


def check_open(host: str, key: Key | None, *, without_key: bool) -> None:
    """Checks that whoever reaches the port from elsewhere needs a key, or that this was asked for.

    Raises: HarnessError "key-needed", "key-and-without-key".
    """
    if key is not None and without_key:
        raise HarnessError(
            "key-and-without-key",
            "--api-key-file and --without-key contradict each other",
            got="both",
            need="one of the two",
            fix="leave --without-key out",
        )
    if key is None and not without_key and not is_loopback(host):
        raise HarnessError(
            "key-needed",
            f"{host} is reached from other machines, and no key is set",
            got="no --api-key-file",
            need="a key that clients send (WebsocketClientPolicy(host, port, api_key))",
            fix="--api-key-file FILE, or --without-key if everybody who reaches the port may use the policy",
        )


def listenable(host: str, port: int) -> str | list[str]:
    """The host if each of its addresses can be listened on, else those of them that are this machine's.

    A name may have an address of a family that is switched off here: `localhost` is ::1 too in a container.

    Raises: HarnessError "port-taken".
    """
    here: list[str] = []
    absent: list[OSError] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            try:
                _listen_once(family, kind, protocol, address)
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                absent.append(error)
            else:
                here.append(str(address[0]))
        if not here:
            raise absent[0]
    except (OSError, ValueError) as error:
        # A name of which no host can be, such as one with two dots in a row, is a ValueError.
        raise port_taken(host, port, error) from error
    return here if absent else host


def _listen_once(family: int, kind: int, protocol: int, address: tuple[Any, ...]) -> None:
    with socket.socket(family, kind, protocol) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        tried.bind(address)
        # Two sockets may be bound to one address; only one of them listens.
        tried.listen(1)


def port_taken(host: str, port: int, error: OSError | ValueError) -> HarnessError:
    """The refusal of an address that cannot be listened on."""
    return HarnessError(
        "port-taken",
        f"cannot listen on {host} port {port}",
        got=getattr(error, "strerror", None) or str(error),
        need="an address of this machine and a free port",
        fix="--port 8001, or --host 127.0.0.1",
    )


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
