"""The policy behind a connection: a query of the simulator goes out, checked actions come back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI, WebSocketException

from harness.artifacts.episodes import Key
from harness.errors import HarnessError
from harness.received.text import one_line, word
from harness.redact import redact
from harness.serve.client import Client
from harness.serve.names import SEED
from harness.units import format_seconds

# openpi's client sends these names to a policy of LIBERO. Source: openpi examples/libero/main.py 15a9616.
IMAGE, WRIST, STATE, PROMPT = "observation/image", "observation/wrist_image", "observation/state", "prompt"
STATE_WIDTH, ACTION_WIDTH = 8, 7
# The server itself is gone or does not answer; the next episode may find it again.
LOST = ("server-gone", "server-hung")
_REFUSED = 401, 403
_NOT_FINITE = "[prediction-not-finite]"


class Address(NamedTuple):
    """Where a server listens, with its key, and how long each of its answers may take."""

    uri: str
    key: str | None
    patience_s: float

    @property
    def shown(self) -> str:
        return one_line(redact(self.uri))


class Form(NamedTuple):
    """What is sent and what must come back.

    `seed` is what the noise of each query follows from; None for a server that does not know the key.
    `least` is the number of actions that are executed before the next query.
    """

    seed: int | None
    least: int


def noise_seed(seed: int, key: Key, number: int) -> int:
    """The seed of a query's noise, of 32 bits: the same in any order and for any number of workers."""
    text = f"{seed} {key.suite} {key.task} {key.episode} {key.repeat} {number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


class Remote:
    """A connection to the server of a policy."""

    def __init__(self, address: Address) -> None:
        """Connects.

        Raises: HarnessError "server-gone", "server-hung", "server-key", "server-address", "server-refused".
        """
        self.address = address
        # The actions of the last answer; None before the first.
        self.horizon: int | None = None
        self._client = connected(address)

    @property
    def metadata(self) -> dict[str, Any]:
        return self._client.metadata

    def act(self, key: Key, number: int, prompt: str, arrays: Mapping[str, np.ndarray], form: Form) -> Any:
        """The actions of a query, float64 [form.least, 7].

        Raises: HarnessError "server-gone", "server-hung", "server-refused", "policy-without-actions",
        "policy-of-another-robot", "policy-horizon", "policy-not-finite".
        """
        asked = {
            IMAGE: np.ascontiguousarray(arrays["image"]),
            WRIST: np.ascontiguousarray(arrays["wrist_image"]),
            STATE: arrays["state"],
            PROMPT: prompt,
        }
        if form.seed is not None:
            asked[SEED] = noise_seed(form.seed, key, number)
        try:
            answer = self._client.infer(asked)
        except TimeoutError as error:
            raise _hung(self.address) from error
        except (WebSocketException, OSError) as error:
            raise _gone(self.address, error) from error
        except HarnessError as error:
            # Our own server looks at its actions itself, and says so.
            if _NOT_FINITE in str(error.got):
                raise _not_finite("the server found them") from error
            raise
        found = checked(answer.get("actions"))
        self.horizon = len(found)
        if self.horizon < form.least:
            raise too_short(self.horizon, form.least)
        return found[: form.least]

    def close(self) -> None:
        with suppress(WebSocketException, OSError):
            self._client.close()


def connected(address: Address) -> Client:
    """A new connection.

    Raises: as `Remote`.
    """
    try:
        return Client(address.uri, address.key, patience_s=address.patience_s)
    except TimeoutError as error:
        raise _hung(address) from error
    # What urllib cannot take apart at all, such as a port of five nines, is a ValueError.
    except (InvalidURI, ValueError) as error:
        raise HarnessError(
            "server-address",
            f"{address.shown} is no address of a server",
            got=one_line(redact(str(error))),
            need="ws://HOST:PORT or wss://HOST:PORT",
            fix="--server ws://127.0.0.1:8000",
        ) from error
    except InvalidStatus as error:
        status = error.response.status_code
        raise HarnessError(
            "server-key" if status in _REFUSED else "server-refused",
            f"the server at {address.shown} lets this client not in",
            got=f"HTTP {status}: {one_line(redact(_body(error)))[:200]}",
            need="the key that the server was started with" if status in _REFUSED else "an open server",
            fix="--api-key-file FILE, with the file that the server was started with"
            if status in _REFUSED
            else "serve with more --max-clients, or evaluate with fewer --workers",
        ) from error
    except (InvalidHandshake, WebSocketException, OSError, EOFError) as error:
        raise _gone(address, error) from error


def checked(actions: Any) -> np.ndarray:
    """The actions of an answer, float64 [horizon, 7].

    Raises: HarnessError "policy-without-actions", "policy-of-another-robot", "policy-not-finite".
    """
    found = _array(actions)
    if found is None or found.dtype.kind not in "fiu" or found.ndim != 2:
        got = "nothing" if actions is None else type(actions).__name__
        raise HarnessError(
            "policy-without-actions",
            "the server's answer holds no chunk of actions",
            got=got if found is None else f"{found.dtype} of shape {list(found.shape)}",
            need=f"`actions`, numbers of shape [horizon, {ACTION_WIDTH}]",
            fix="connect to a policy server of openpi's protocol, such as harness serve STEP",
        )
    if found.shape[1] != ACTION_WIDTH:
        raise of_another_robot("actions", found.shape[1], ACTION_WIDTH)
    if not np.isfinite(found).all():
        raise _not_finite(f"{int((~np.isfinite(found)).sum())} of {found.size} numbers")
    return found.astype(np.float64)


def _array(actions: Any) -> np.ndarray | None:
    try:
        return np.asarray(actions) if isinstance(actions, np.ndarray | list) else None
    except ValueError:
        # Lists of different lengths.
        return None


def of_another_robot(key: str, got: int, need: int) -> HarnessError:
    """The refusal of a policy whose states or actions are not LIBERO's."""
    return HarnessError(
        "policy-of-another-robot",
        f"the policy has {key} of {got} dimensions, LIBERO's robot has {need}",
        got=got,
        need=need,
        fix="evaluate a checkpoint that learned from LIBERO, such as one of the recipe pi05_libero",
    )


def too_short(horizon: int, least: int) -> HarnessError:
    """The refusal of a policy that gives fewer actions than are executed."""
    return HarnessError(
        "policy-horizon",
        "the policy gives fewer actions at a query than the protocol executes before the next",
        got=horizon,
        need=f"{least} or more",
        fix=f"--depart {word(f'replan_steps={horizon}')}, which departs from the protocol by name",
    )


def _not_finite(got: str) -> HarnessError:
    return HarnessError(
        "policy-not-finite",
        "the policy answers NaN or infinity",
        got=got,
        need="finite actions",
        fix="harness inspect STEP --deep tells which weights are not finite; take an earlier step",
    )


def _body(error: InvalidStatus) -> str:
    return (error.response.body or b"").decode(errors="replace")


def _hung(address: Address) -> HarnessError:
    return HarnessError(
        "server-hung",
        f"the server at {address.shown} gave no answer",
        got=f"nothing for {format_seconds(address.patience_s)}",
        need="an answer in that time",
        fix="look at the server's log; --patience SECONDS waits longer; then --resume",
    )


def _gone(address: Address, error: BaseException) -> HarnessError:
    return HarnessError(
        "server-gone",
        f"the server at {address.shown} is not there, or closed the connection",
        got=one_line(redact(str(error) or type(error).__name__))[:300],
        need="a policy server of openpi's protocol",
        fix="start it, for example: harness serve STEP; then go on with --resume",
    )
