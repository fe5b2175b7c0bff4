"""Makes the atlas: asks the compiler all that `harness plan --gpu` needs to answer for the shipped recipes on
every card, and keeps it.

    python benchmarks/atlas.py [--cards rtx_4090,a100_80] [--recipes smoke,pi05_libero] [--minutes 60]
    [--spread]

Writes harness/plan/atlas/RECIPE.json after every answer, so that it can be stopped and started again: what is
known is not asked twice. Answers of an older version of the step are first compared: where the program that
is lowered today has the same hash they are stamped anew, the others are asked again: a search that finds a
plan in the atlas is satisfied with it, so it would not miss the faster ones that were there. Cards
come in the order of `CARDS_FIRST`. For each card a plan is made as `harness plan` makes it, with any amount
of host memory and with 32 GiB of it, so that only what the search really asks is compiled. That includes
the faster levels of rematerialization of each best plan, where they may fit, and the exact answer of each
plan that is chosen, its loading and saving too. `--spread` compiles one entry for several cards instead, and
prints how far they lie apart: why there is one class of cards. Some 70 answers in all, each about 20 s on two
idle cores, or a minute on slow ones.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib import metadata
from pathlib import Path

# The flags of the images (docker/xla.env): what is asked here is what will run there.
os.environ["XLA_FLAGS"] = "--xla_gpu_deterministic_ops=true"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.artifacts import Candidate, Host, Levers, Machine
from harness.errors import HarnessError
from harness.plan import atlas
from harness.plan.asked import Ask, Tools
from harness.plan.candidates import changed
from harness.plan.cards import CARDS, targets
from harness.plan.choose import choose
from harness.plan.compile import Answer, Request, compiled
from harness.plan.need import beside_steps
from harness.plan.source import source_hash
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from harness.run.directory import write_atomic
from harness.units import GIB, format_bytes

FOLDER = Path(__file__).resolve().parent.parent / "harness" / "plan" / "atlas"
RECIPES = ("smoke", "pi05_libero_lora", "pi05_libero")
CARDS_FIRST = ("rtx_4090", "rtx_a6000", "rtx_3060", "a100_80", "rtx_3090", "rtx_4070", "rtx_5090", "h100")
SPREAD = ("rtx_a6000", "rtx_a4000", "a40", "rtx_4090", "rtx_5090", "a100_80", "h100")


class Book:
    """The entries of one recipe, on disk after every change; plays the compiler for `choose`."""

    def __init__(self, name: str, until: float) -> None:
        self._path, self._until = FOLDER / f"{name}.json", until
        self._entries: list[atlas.Entry] = []
        self._recipes: dict[str, dict] = {}
        if self._path.is_file():
            self._take(atlas.AtlasFile.model_validate_json(self._path.read_bytes()))

    def _take(self, kept: atlas.AtlasFile) -> None:
        here = (metadata.version("jaxlib"), source_hash())
        if kept.jaxlib != here[0]:
            print(
                f"{self._path.name}: made with jaxlib {kept.jaxlib}, all {len(kept.entries)} entries are"
                " dropped"
            )
            return
        self._recipes = kept.recipes
        if kept.source == here[1]:
            self._entries = kept.entries
            return
        # What surrounds the step has no hash; it is asked anew. The file stays as it is until all is done.
        steps = [entry for entry in kept.entries if entry.phase == "step"]
        for number, entry in enumerate(steps, 1):
            if time.monotonic() > self._until:
                raise TimeoutError
            recipe = Recipe.model_validate(kept.recipes[entry.recipe])
            same = (
                compiled(_request(recipe, entry.levers, "step", only_lower=True)).program_sha256
                == entry.program_sha256
            )
            print(
                f"{self._path.name} {number}/{len(steps)}:"
                f" {'the same program' if same else 'another program, asked again'}",
                flush=True,
            )
            if same:
                self._entries.append(entry)
            else:
                self._asked(_request(recipe, entry.levers, "step"))
        self._write()

    def __call__(self, request: Request, **_: object) -> Answer:
        answer = self._asked(request)
        self._write()
        return answer

    def _asked(self, request: Request) -> Answer:
        if time.monotonic() > self._until:
            raise TimeoutError
        begun = time.monotonic()
        answer = compiled(_request(request.recipe, request.levers, request.phase))
        key = atlas.step_key(request.recipe)
        entry = atlas.Entry(
            recipe=key,
            levers=request.levers,
            phase=request.phase,
            bytes=answer.bytes,
            fingerprint=answer.program_sha256,
        )
        self._recipes[key] = request.recipe.model_dump(mode="json")
        self._entries.append(entry)
        size = answer.bytes["device"] + int(atlas.ALLOWANCE * answer.bytes["temp"])
        levers = request.levers
        what = (
            f"{request.recipe.train.trained} {request.phase} {levers.microbatch} x"
            f" {levers.accumulation_steps}, host {levers.host}, remat {levers.remat}"
        )
        print(f"  {what}: {format_bytes(size)} in {time.monotonic() - begun:.0f} s", flush=True)
        return answer.model_copy(update={"bytes": answer.bytes | {"device": size}})

    def known(self) -> atlas.Atlas:
        """What this book holds, and what the books of other recipes hold: one recipe changed is often
        another.
        """
        others = [
            atlas.AtlasFile.model_validate_json(path.read_bytes())
            for path in sorted(FOLDER.glob("*.json"))
            if path != self._path
        ]
        return atlas.Atlas([self._file(), *others])

    def _file(self) -> atlas.AtlasFile:
        return atlas.AtlasFile(
            jaxlib=metadata.version("jaxlib"),
            source=source_hash(),
            recipes=self._recipes,
            entries=self._entries,
        )

    def _write(self) -> None:
        lines = ",\n".join(entry.model_dump_json(by_alias=True) for entry in self._entries)
        head = self._file().model_dump_json(exclude={"entries"}).removesuffix("}")
        write_atomic(self._path, f'{head},"entries":[\n{lines}\n]}}\n')


def _request(recipe: Recipe, levers: Levers, phase: str, *, only_lower: bool = False) -> Request:
    return Request(
        recipe=recipe, levers=levers, phase=phase, target=atlas.REFERENCE.target(), only_lower=only_lower
    )


def complete(book: Book, recipe: Recipe, chosen: Candidate) -> None:
    """Asks for what the plan was chosen without.

    A bound of a larger step will do for a choice, but the plan that is chosen is worth its own answer.
    Loading and saving are counted where they are far below the step: with the compiler's answers a test
    compares.
    """
    asked = [("step", chosen.levers)] if chosen.source == "interpolated" else []
    asked += [(phase, beside_steps(chosen.levers)) for phase in ("load", "save")]
    for phase, levers in asked:
        known = book.known().look_up(recipe, levers, phase)
        if known is None or known.source == "interpolated":
            book(_request(recipe, levers, phase))


def make(recipes: list[str], cards: list[str], until: float) -> int:
    """How many plans could not be made, because something of them does not compile."""
    nobody, failed = Machine(host=Host()), 0
    for name in recipes:
        book = Book(name, until)
        for card in cards:
            for ram in (None, 32 * GIB):
                try:
                    chosen = choose(
                        load_recipe(name),
                        nobody,
                        None,
                        Ask(gpu=card, host_ram_bytes=ram),
                        tools=Tools(book.known(), book, thorough=True),
                        advise=False,
                    ).chosen
                except HarnessError as error:
                    # The others are still worth having.
                    print(f"{name} on {card}: {error}", flush=True)
                    failed += 1
                    continue
                if chosen:
                    complete(book, changed(load_recipe(name), chosen.changes), chosen)
                told = f"{chosen.reason}, {len(chosen.deviations)} deviations" if chosen else "nothing fits"
                print(f"{name} on {card}, host {format_bytes(ram) if ram else 'any'}: {told}", flush=True)
    return failed


def spread() -> None:
    recipe = load_recipe("pi05_libero_lora", ["train.global_batch=32"])
    cameras = [camera for camera, feature in recipe.data.cameras.items() if feature]
    levers = Levers(platform="cuda", microbatch=32, prompt_tokens=48, cameras=cameras)
    sizes = {
        card: compiled(Request(recipe=recipe, levers=levers, target=CARDS[card].target())).bytes
        for card in SPREAD
    }
    reference = compiled(_request(recipe, levers, "step")).bytes
    for card, size in (sizes | {"the reference": reference}).items():
        print(
            f"{card:14} {size['device'] / GIB:8.3f} GiB  {size['device'] / reference['device']:.4f} "
            f" temporary {size['temp'] / reference['temp']:.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cards", default=",".join(dict.fromkeys([*CARDS_FIRST, *targets()])))
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--spread", action="store_true")
    arguments = parser.parse_args()
    if arguments.spread:
        spread()
        return
    try:
        failed = make(
            arguments.recipes.split(","),
            arguments.cards.split(","),
            time.monotonic() + 60 * arguments.minutes,
        )
        sys.exit(1 if failed else 0)
    except TimeoutError:
        print("out of time: the same command goes on from here")
        sys.exit(1)


if __name__ == "__main__":
    main()
