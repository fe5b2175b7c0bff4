"""A client's observation as the model's inputs, and what the model sampled as the client's actions.

The transforms are those of training and of `harness predict`; here are only their order and their refusals.

Axes: S the model's image size, T prompt tokens, H action horizon, D action_dim, A real dimensions of an
action.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from harness.artifacts import DimensionStats
from harness.data.prompts import instruction
from harness.data.space import Space
from harness.data.tokenizer import Tokenizer
from harness.data.transforms import normalized
from harness.errors import HarnessError
from harness.predict.predict import in_units
from harness.received.text import one_line
from harness.recipe.schema import Recipe
from harness.serve.names import PROMPT, SEED, Names
from harness.serve.noise import MOST_SEED
from harness.serve.pictures import picture
from harness.serve.rtc import Form, Previous, weights_of
from harness.serve.rtc_keys import KEYS, Seen, previous_from

# An evaluation has some 10 to 130 tasks.
_KEPT_PROMPTS = 256
_MOST_CHARACTERS = 8192
# How alike a key that nobody reads must be to one that is optional, to be taken for a slip of it.
_A_SLIP = 0.8


class Asked(NamedTuple):
    """What one request asks.

    `images`: camera of the model → uint8 [S, S, 3]; one that the request may lack, and lacks, is an absent
    key. `tokens` int32 [T], `token_mask` bool [T]. `state` is in the dataset's units, float32; None if it was
    not sent. `seed` is None if the server chooses it. `previous` is the chunk to go on from; None if there is
    none, or nothing of it counts. `prompt_length` is the number of tokens of the whole prompt, which may be
    more than T.
    """

    images: dict[str, np.ndarray]
    tokens: np.ndarray
    token_mask: np.ndarray
    state: np.ndarray | None
    seed: int | None
    previous: Previous | None = None
    prompt_length: int = 0

    @property
    def is_cut(self) -> bool:
        """Whether the model sees only the beginning of the prompt."""
        return self.prompt_length > len(self.tokens)


class Reader:
    """Reads observations of one recipe.

    `stats` are those of the checkpoint, without padding. `state_width` is the number of dimensions of a
    state, None if unknown. `buckets` are the prompt lengths that are compiled. `rtc` is how the engine goes
    on from a previous chunk, None if it does not.
    """

    def __init__(
        self,
        recipe: Recipe,
        stats: Mapping[str, DimensionStats],
        state_width: int | None,
        buckets: tuple[int, ...],
        tokenizer: Tokenizer,
        rtc: Form | None = None,
    ) -> None:
        self.rtc = rtc
        self.recipe, self.buckets, self.state_width = recipe, buckets, state_width
        self._names = Names(recipe.data)
        self.cameras, self.states = self._names.cameras, self._names.states
        self._space, self._stats, self._tokenizer = Space.of(recipe.data), dict(stats), tokenizer
        in_prompt = recipe.model.discrete_state_input and recipe.data.state is not None
        self.state_in_prompt = in_prompt and "state" in stats
        if self.state_in_prompt:
            self.state_width = len(stats["state"].mean or stats["state"].q01)
        self.needs_state = self.state_in_prompt or any(self._space.relative)
        self._plain_tokens = functools.lru_cache(_KEPT_PROMPTS)(self._encoded)

    @property
    def optional(self) -> set[str]:
        """The cameras that a request may lack. The model then does not see them."""
        return self._names.optional

    @property
    def needs_prompt(self) -> bool:
        """Whether a request without a prompt is refused."""
        return self.recipe.data.prompt is None and self.recipe.data.default_prompt is None

    def warm(self) -> None:
        """Reads an observation of the largest kind once, so that no client waits for what is loaded then."""
        found: dict[str, Any] = {
            names[0]: np.zeros((480, 640, 3), np.uint8) for names in self.cameras.values()
        }
        widths = [self.state_width or 1, *[1] * (len(self.states[0]) - 1)] if self.needs_state else []
        if widths:
            widths[0] -= len(widths) - 1
            found |= {
                name: np.zeros(width) for name, width in zip(self.states[0], widths, strict=True) if width > 0
            }
        asked = self.read(found | {PROMPT: "warm up"})
        self._plain_tokens.cache_clear()
        self.actions(np.zeros((1, self.recipe.model.action_dim), np.float32), asked)

    def read(self, observation: Any) -> Asked:
        """The inputs of one observation.

        Raises: HarnessError "observation-invalid", "observation-key-missing".
        """
        if not isinstance(observation, dict):
            raise _invalid(
                "the observation is no map", type(observation).__name__, "a map of keys and values"
            )
        found = self._names.flat(observation)
        self._refuse_slips(found)
        seen = {camera: self._camera(camera, found) for camera in self.cameras}
        size = self.recipe.model.image_size
        images = {camera: picture(*sent, size) for camera, sent in seen.items() if sent is not None}
        state = self._state(found)
        tokens, mask, length = self._tokens(self._prompt(found), state)
        seed, previous = _seed(found.get(SEED)), self._previous(found, state)
        return Asked(images, tokens, mask, state, seed, previous, length)

    def actions(self, sampled: np.ndarray, asked: Asked) -> np.ndarray:
        """Actions float32 [H, A] in the dataset's units, of what the model sampled, [H, D].

        Raises: HarnessError "prediction-not-finite".
        """
        actions = in_units(self.recipe, self._stats, sampled, asked.state)
        if not np.isfinite(actions).all():
            raise HarnessError(
                "prediction-not-finite",
                "the model gives NaN or infinity for this observation",
                need="finite actions",
                fix="harness inspect STEP --deep on the server's checkpoint, or serve an earlier step",
            )
        return actions

    def _camera(self, camera: str, found: Mapping[str, tuple[str, Any]]) -> tuple[str, Any] | None:
        """The name and value of a camera's picture. None if the request lacks one that it may lack."""
        names = self.cameras[camera]
        for name in names:
            if self._names.key(name) in found:
                return found[self._names.key(name)]
        if self._names.may_lack(camera, found):
            return None
        raise _missing(f"the camera {camera}", found, names[0])

    def _state(self, found: Mapping[str, tuple[str, Any]]) -> np.ndarray | None:
        key = self._names.key
        names = next((names for names in self.states if all(key(name) in found for name in names)), None)
        if names is None:
            if self.needs_state:
                raise _missing("the state", found, " and ".join(self.states[0]))
            return None
        state = np.concatenate([_vector(*found[key(name)]) for name in names])
        if self.state_width is not None and len(state) != self.state_width:
            raise _invalid(
                "the state has another number of dimensions than the robot that was trained on",
                f"{len(state)} in {' and '.join(found[key(name)][0] for name in names)}",
                f"{self.state_width}",
            )
        return state

    def _previous(self, found: Mapping[str, tuple[str, Any]], state: np.ndarray | None) -> Previous | None:
        said = {key: found[key][1] for key in KEYS if key in found}
        if self.rtc is None and any(value is not None for value in said.values()):
            raise HarnessError(
                "observation-invalid",
                "this server does not go on from previous chunks",
                got=", ".join(said),
                need=f"a request without {', '.join(KEYS)}",
                fix="leave these keys out, or start the server with them: harness serve STEP --rtc",
            )
        seen = Seen(self.recipe, self._stats["actions"])
        previous = previous_from(said, seen, state if any(self._space.relative) else None)
        if previous is None or self.rtc is None or not weights_of(previous, self.rtc).any():
            return None
        return previous

    def _prompt(self, found: Mapping[str, tuple[str, Any]]) -> str:
        data = self.recipe.data
        _, value = found.get(PROMPT, (PROMPT, None))
        if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "US":
            value = _text(value)
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if value is None:
            if self.needs_prompt:
                raise _missing("the instruction", found, PROMPT)
            value = ""
        if not isinstance(value, str):
            raise _invalid(f"{PROMPT!r} is no text", type(value).__name__, "a text")
        if len(value) > _MOST_CHARACTERS:
            raise _invalid(
                f"{PROMPT!r} is too long", f"{len(value)} characters", f"at most {_MOST_CHARACTERS}"
            )
        return instruction(data, str(value))

    def _tokens(self, text: str, state: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int]:
        if not self.state_in_prompt:
            return self._plain_tokens(text)
        assert state is not None
        seen = normalized(self._space.states(state), self._stats["state"], self.recipe.data.normalization)
        return self._padded(self._tokenizer.encode_with_state(text, seen))

    def _encoded(self, text: str) -> tuple[np.ndarray, np.ndarray, int]:
        return self._padded(self._tokenizer.encode(text))

    def _padded(self, found: list[int]) -> tuple[np.ndarray, np.ndarray, int]:
        """The tokens padded with 0 to the shortest bucket that holds them; cut to the longest one.

        The third is how many there were.
        """
        length = next((one for one in self.buckets if one >= len(found)), self.buckets[-1])
        kept = found[:length]
        tokens = np.zeros(length, np.int32)
        tokens[: len(kept)] = kept
        return tokens, np.arange(length) < len(kept), len(found)

    def _refuse_slips(self, found: Mapping[str, tuple[str, Any]]) -> None:
        """Refuses a key that is read by nobody and is almost that of an optional value.

        Other keys that are read by nobody are let pass, as openpi's server does: a fourth camera, for one.
        """
        for name in found.keys() - self._names.known:
            near = difflib.get_close_matches(name[:100], [PROMPT, SEED, *KEYS], n=1, cutoff=_A_SLIP)
            if near:
                raise _invalid("a key is not known", one_line(repr(found[name][0][:100])), repr(near[0]))


def _text(array: np.ndarray) -> str | bytes:
    """The text of an array of one. numpy takes any 32 bits for a character; no tokenizer does."""
    found: str | bytes
    try:
        found = array.item()
        if isinstance(found, str):
            found.encode()
    except (SystemError, ValueError) as error:
        raise _invalid(f"{PROMPT!r} is no text", "what is no character of Unicode", "a text") from error
    return found


def _vector(name: str, value: Any) -> np.ndarray:
    """float32 [S] of a client's numbers. The datasets that were trained on are float32."""
    if isinstance(value, list) and not all(_is_number(one) for one in value):
        raise _invalid(f"{name[:100]!r} is no vector of numbers", "a list of other things", "numbers")
    if not isinstance(value, list | int | float | np.ndarray | np.generic):
        raise _invalid(f"{name[:100]!r} is no vector of numbers", type(value).__name__, "numbers")
    array = np.atleast_1d(np.asarray(value))
    if array.dtype.kind not in "biuf" or array.ndim != 1:
        raise _invalid(
            f"{name[:100]!r} is no vector of numbers", f"{array.dtype} of shape {array.shape}", "one axis"
        )
    with np.errstate(over="ignore"):
        vector = array.astype(np.float32)
    if not np.isfinite(vector).all():
        first = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise _invalid(f"{name[:100]!r}[{first}] is not finite", array[first], "finite numbers")
    return vector


def _is_number(value: Any) -> bool:
    """Whether it is a number of Python's or of numpy's; a list of an array's elements has the latter."""
    return type(value) in (int, float) or isinstance(value, np.number)


def _seed(sent: tuple[str, Any] | None) -> int | None:
    if sent is None or sent[1] is None:
        return None
    value = sent[1].item() if isinstance(sent[1], np.generic | np.ndarray) and not sent[1].ndim else sent[1]
    if type(value) is not int or not 0 <= value <= MOST_SEED:
        got = value if isinstance(value, int | float) else type(value).__name__
        raise _invalid(f"{SEED!r} is no seed", str(got)[:40], f"a whole number from 0 to {MOST_SEED}")
    return value


def _missing(what: str, found: Mapping[str, tuple[str, Any]], need: str) -> HarnessError:
    got = ", ".join(repr(name[:60]) for name, _ in list(found.values())[:12])
    return HarnessError(
        "observation-key-missing",
        f"the observation lacks {what}",
        got=one_line(got) or "an empty map",
        need=need,
        fix=f"send {need!r}; the handshake's metadata has every name that is taken",
    )


def _invalid(what: str, got: object, need: object) -> HarnessError:
    return HarnessError(
        "observation-invalid",
        one_line(what),
        got=one_line(str(got)[:200]),
        need=need,
        fix="send what the handshake's metadata says",
    )
