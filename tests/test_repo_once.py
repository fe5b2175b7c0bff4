"""Tests that certain facts, calls and spellings occur in one place of the package only.

The tests read the source, so that a second place fails.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest

from harness.artifacts.plan import Backend
from harness.flow.find import TRAINERS
from harness.openpi import entry
from harness.supervise.channel import Event
from harness.supervise.signals import SUPERVISOR
from tests.support.source import nodes

HARNESS = Path(__file__).parents[1] / "harness"
NAMES = frozenset(get_args(Backend))
# Event names that are no other word's too: a phase is called "step".
TELLING = frozenset(Event) - {Event.STEP}
# Both ends of the protocol between trainer and supervisor, and who stands at them.
PROTOCOL = {"train/worker.py", "openpi/worker.py", "openpi/entry.py"} | {
    path.relative_to(HARNESS).as_posix() for path in (HARNESS / "supervise").glob("*.py")
}

# Words of docs/glossary.md that once had several meanings: the room and the modules where each has its one.
WORDS = {
    "place": (
        *("plan/", "flow/trainer_openpi.py", "verbs/imports.py"),
        *("openpi/plan.py", "openpi/run.py", "openpi/imported.py"),
    ),
    "fingerprint": ("recipe/fingerprint.py", "analyse/fingerprints.py"),
}
# The manifest's own names of two hashes: they are in the files of older runs.
IN_JSON = {"step_fingerprint", "executable_fingerprint"}

Look = Callable[[ast.AST], bool]


def is_text(node: ast.AST | None, *texts: str) -> bool:
    return isinstance(node, ast.Constant) and node.value in texts


def is_called(node: ast.AST, name: str) -> bool:
    """Whether `node` calls `name`, which may be dotted."""
    if not isinstance(node, ast.Call):
        return False
    # Most calls are known by their last word, and to write one out again takes long.
    last = getattr(node.func, "attr", getattr(node.func, "id", ""))
    return last == name.rpartition(".")[2] and ast.unparse(node.func) == name


def asks_whose_trainer(node: ast.AST) -> bool:
    """A comparison with a trainer's name, or a table by them."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        each = [part for side in sides for part in getattr(side, "elts", [side])]
        return any(
            is_text(part, *NAMES) or (isinstance(part, ast.Attribute) and part.attr == "backend")
            for part in each
        )
    if isinstance(node, ast.Dict):
        return {*NAMES} <= {key.value for key in node.keys if isinstance(key, ast.Constant)}
    return isinstance(node, ast.MatchValue) and is_text(node.value, *NAMES)


def handles_a_signal(node: ast.AST) -> bool:
    return is_called(node, "signal.signal")


def ties_itself_to_its_parent(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "prctl"


def names_the_supervisor(node: ast.AST) -> bool:
    return is_text(node, SUPERVISOR)


def spells_an_event(node: ast.AST) -> bool:
    return is_text(node, "event", *TELLING)


def makes_the_shapes_of_a_state(node: ast.AST) -> bool:
    return is_called(node, "abstract_state")


def identifiers(node: ast.AST) -> Iterator[str]:
    """The names that `node` itself spells: of a variable, attribute, argument, function, class or import."""
    for field in ("id", "attr", "arg", "name", "asname"):
        name = getattr(node, field, None)
        if isinstance(name, str):
            yield from name.split(".") if isinstance(node, ast.alias) else [name]


def spells(word: str) -> Look:
    """Whether an identifier has `word`, its plural or its participle as one of its words."""
    forms = {word, f"{word}s", f"{word}d", f"{word}ed"}

    def look(node: ast.AST) -> bool:
        return any(
            forms & {part.lower() for part in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)}
            for name in identifiers(node)
            if name not in IN_JSON
        )

    return look


def places(look: Look, among: set[str] | None = None) -> set[str]:
    """The modules, as `train/loop.py`, in which `look` finds something."""
    found = set()
    for path in HARNESS.rglob("*.py"):
        name = path.relative_to(HARNESS).as_posix()
        if (among is None or name in among) and any(map(look, nodes(path))):
            found.add(name)
    return found


def test_whose_trainer_is_asked_in_flow_alone() -> None:
    """Room `openpi` is of one trainer. Room `run` knows how each names its files, and lies below the flow."""
    elsewhere = {name for name in places(asks_whose_trainer) if not name.startswith(("openpi/", "run/"))}
    assert elsewhere == set()


def test_every_name_of_a_trainer_has_one() -> None:
    assert set(TRAINERS) == NAMES
    assert all(trainer.name == name for name, trainer in TRAINERS.items())


def test_signals_are_handled_in_one_place() -> None:
    # A process of the simulator is another Python, which sees its own room alone.
    assert places(handles_a_signal) == {"supervise/signals.py", "simulate/worker.py"}


def test_a_process_is_tied_to_its_parent_in_one_place_and_in_openpis_interpreter() -> None:
    """openpi/entry.py can import nothing of ours."""
    assert places(ties_itself_to_its_parent) == {"supervise/signals.py", "openpi/entry.py"}
    assert places(names_the_supervisor) == {"supervise/signals.py", "openpi/entry.py"}
    assert entry.PARENT == SUPERVISOR


def test_events_are_spelled_where_both_ends_of_the_protocol_are() -> None:
    assert places(spells_an_event, PROTOCOL) == {"supervise/channel.py"}
    assert places(lambda node: is_text(node, "event", Event.HOST_MEMORY)) == {"supervise/channel.py"}
    # The first line of openpi's entry is another protocol, of these two.
    assert places(lambda node: is_text(node, entry.REFUSED), PROTOCOL) == {"openpi/entry.py"}


def test_the_shapes_of_a_state_are_made_once() -> None:
    assert places(makes_the_shapes_of_a_state) == {"train/setup.py"}


@pytest.mark.parametrize("word", WORDS)
def test_a_word_with_one_meaning_is_spelled_only_where_it_has_it(word: str) -> None:
    elsewhere = {name for name in places(spells(word)) if not name.startswith(WORDS[word])}
    assert elsewhere == set()


@pytest.mark.parametrize(
    "source",
    [
        *("place = path", "self._places[0]", "def placed(x): ...", "class Place: ...", "f(place=1)"),
        *("def f(old_place): ...", "import a.place as b", "from a import b as place_of", "in_placeX"),
    ],
)
def test_the_search_sees_the_word(source: str) -> None:
    assert any(map(spells("place"), ast.walk(ast.parse(source))))


def test_another_word_is_not_the_word() -> None:
    assert not any(map(spells("place"), ast.walk(ast.parse("text.replace(PLACEHOLDER, placement)"))))


def test_functions_that_compare_say_what() -> None:
    named = places(lambda node: isinstance(node, ast.FunctionDef) and node.name == "compare")
    assert named == set()


@pytest.mark.parametrize(
    ("look", "source"),
    [
        (asks_whose_trainer, "plan.backend == name"),
        (asks_whose_trainer, "whose != 'openpi'"),
        (asks_whose_trainer, "'ours' == whose"),
        (asks_whose_trainer, "whose in ('ours', 'other')"),
        (asks_whose_trainer, "{'ours': 1, 'openpi': 2}[whose]"),
        (asks_whose_trainer, "match whose:\n    case 'openpi':\n        pass"),
        (handles_a_signal, "signal.signal(signal.SIGTERM, stop)"),
        (ties_itself_to_its_parent, "ctypes.CDLL(None).prctl(1, 9)"),
        (names_the_supervisor, "os.environ['HARNESS_SUPERVISOR']"),
        (spells_an_event, "channel.tell('exhausted', text=text)"),
        (spells_an_event, "kind == 'host-memory'"),
        (makes_the_shapes_of_a_state, "layout.of(abstract_state(recipe))"),
    ],
)
def test_the_search_sees_a_second_place(look: Look, source: str) -> None:
    assert any(map(look, ast.walk(ast.parse(source))))
