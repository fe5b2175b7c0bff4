"""The kinds of input that a stranger may have sent. Part of `benchmarks.strangers`.

Each input is laid out, spoiled, and given to the verbs that open it.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.strangers_bases import COMMANDS, Bases
from benchmarks.strangers_child import Call
from benchmarks.strangers_files import files_below, mutate_file, remove, trick
from benchmarks.strangers_ocdbt import mutate as mutate_ocdbt
from benchmarks.strangers_pages import Servers, clean_site, mutate_site
from benchmarks.strangers_texts import mutate_text
from benchmarks.strangers_values import Hostile, dumps
from benchmarks.strangers_world import World

RECEIVED = "runs/received"

# One in so many inputs is left as it was made: what is said of it must be free of complaints too.
_HONEST = 40


class Place(NamedTuple):
    """Where a case is laid out, and who a stranger would like to be connected to."""

    world: World
    bases: Bases
    servers: Servers
    hostile: Hostile


Option = tuple[float, Callable[[], Call]]


def _spoil(root: Path, place: Place, rng: random.Random) -> str:
    """What was done to one, at times to three, of an input's files."""
    if rng.randrange(_HONEST) == 0:
        return "as it was made"
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        files = files_below(root)
        if files:
            done.append(
                mutate_file(
                    rng.choices(files, [_worth(path, root) for path in files])[0], root, rng, place.hostile
                )
            )
    return "; ".join(done) or "nothing is left"


def _worth(path: Path, root: Path) -> int:
    """How often a file is spoiled: the few that are read first more often than the many that hold numbers."""
    if path.name in ("manifest.json", "recipe.yaml"):
        return 60
    return (
        1
        if path.parent.name == "d" or path.name in ("commit_success.txt", "report.html")
        else 12
        if path.parent == root
        else 4
    )


def _json(rng: random.Random) -> tuple[str, ...]:
    return ("--json",) if rng.random() < 0.3 else ()


def run(place: Place, rng: random.Random) -> tuple[str, list[Option]]:
    target = place.world.received_run
    shutil.copytree(place.bases.run, target)
    json = _json(rng)
    resumed: list[Option] = []
    if rng.random() < 0.08:
        # What training opens before anything else.
        victim = target / rng.choice([".lock", "checkpoints", "checkpoints/3"])
        what = trick(victim, victim, rng, place.hostile)
        resumed = [
            (
                15,
                lambda: _on(
                    target, "train", "--recipe", str(target / "recipe.yaml"), "--run", writes=(".lock",)
                ),
            )
        ]
    else:
        what = _spoil(target, place, rng)
    options: list[Option] = [
        (4, lambda: _on(target, "status", *json)),
        (4, lambda: _on(target, "inspect", *json)),
        (1, lambda: _on(target, "inspect", "--deep", *json)),
        (2, lambda: _on(target, "inspect", *json, "--run", writes=("checkpoint.json",))),
        (1, lambda: _on(target, "inspect", "--against", "base", writes=("moved.png",))),
        (2, lambda: _on(target, "analyse", *json, writes=("curve.json",))),
        (4, lambda: _on(target, "report", writes=("report.html",))),
        (0.5, lambda: _on(target, "report", "--output", "compare.html", str(target))),
        (3, lambda: _on(target, "verify", "--steps", "0", *json, writes=("verdict.json",))),
        (1, lambda: _on(target, "verify", str(target))),
        (1, lambda: _on(target, "data", *json, "--run", writes=("dataset.json",))),
        (1, lambda: _on(target, "stats", *json, "--run", writes=("dataset.json", "norm_stats.json"))),
        (
            1,
            lambda: _on(
                target,
                "doctor",
                *json,
                "--run",
                writes=("doctor.json", "dataset.json", "norm_stats.json", "machine.json", "plan.json"),
            ),
        ),
        (1, lambda: _on(target, "plan", *json, "--run", writes=("plan.json", "machine.json"))),
        (
            0.5,
            lambda: _on(target, "train", "--recipe", str(target / "recipe.yaml"), "--run", writes=(".lock",)),
        ),
        (0.03, lambda: _on(target, "predict", writes=("predicted_actions.*", "prediction.json"))),
        *resumed,
    ]
    return what, options


def _on(target: Path, *args: str, writes: tuple[str, ...] = ()) -> Call:
    """A verb with the received run as its last argument."""
    return Call((*args, str(target)), tuple(f"{RECEIVED}/{name}" for name in writes))


def checkpoint(place: Place, rng: random.Random) -> tuple[str, list[Option]]:
    name = rng.choice(["step", "step", "step", "zarr", "zarr3", "ocdbt", "ocdbt"])
    target = place.world.received / name
    shutil.copytree(place.bases.checkpoints / name, target)
    what = (
        mutate_ocdbt(target / "params", rng)
        if name == "ocdbt" and rng.random() < 0.9
        else _spoil(target, place, rng)
    )
    against = 1.0
    if name == "step" and rng.random() < 0.15 and (target / "3" / "harness").is_dir():
        # Where a step of only trained parameters says that its base lies. A directory of this machine may
        # well be it.
        remove(target / "3" / "harness" / "base.json")
        (target / "3" / "harness" / "base.json").write_text(
            dumps(
                {
                    "source": rng.choice(
                        [f"{place.hostile.trap}/ckpt", "gs://bucket/ckpt", *place.hostile.secrets]
                    ),
                    "sha256": "0" * rng.choice([1, 64]),
                }
            )
        )
        what, against = f"base.json names another place; {what}", 12.0
    path = str(
        target / "params"
        if name == "ocdbt"
        else target / "3"
        if name == "step" and rng.random() < 0.5
        else target
    )
    json = _json(rng)
    exported = rng.random() < 0.8
    return f"{name}: {what}", [
        (4, lambda: Call(("inspect", path, *json))),
        (3, lambda: Call(("inspect", path, "--deep", *json))),
        (
            against,
            lambda: Call(
                ("inspect", path, "--against", "base" if exported else str(place.bases.run), *json),
                (f"received/{name}/*moved.png", "received/*/moved.png"),
            ),
        ),
        (0.7, lambda: Call(("export", path, "exported"))),
        (0.05, lambda: Call(("predict", path), (f"received/{name}/predict*", f"received/{name}/*/predict*"))),
    ]


def dataset(place: Place, rng: random.Random) -> tuple[str, list[Option]]:
    name = rng.choice(["v21", "v21", "v30", "v30", "video", "video30"])
    target = place.world.received / "set"
    shutil.copytree(place.bases.datasets / name, target)
    what, json = _spoil(target, place, rng), _json(rng)
    asked = ("--recipe", str(place.bases.small), "--dataset", str(target))
    return f"{name}: {what}", [
        (4, lambda: Call(("data", *asked, *json))),
        (1, lambda: Call(("data", *asked, "--html"))),
        (3, lambda: Call(("stats", *asked, *json))),
        (1, lambda: Call(("doctor", *asked, *json))),
    ]


def log(place: Place, rng: random.Random) -> tuple[str, list[Option]]:
    target = place.world.received / "log"
    shutil.copytree(place.bases.logs, target)
    files = files_below(target)
    path = rng.choice(files)
    what = "as it was made" if rng.randrange(_HONEST) == 0 else mutate_file(path, target, rng, place.hostile)
    honest, json = str(place.bases.logs / "openpi.log"), _json(rng)
    # Where a log has become a directory, it is taken for a run.
    curve = ("received/log/*curve.json",)
    return f"{path.name}: {what}", [
        (8, lambda: Call(("analyse", str(path), *json), curve)),
        (1, lambda: Call(("analyse", honest, "--reference", str(path), *json), curve)),
        (1, lambda: Call(("analyse", str(path), "--reference", honest, *json), curve)),
    ]


def recipe(place: Place, rng: random.Random) -> tuple[str, list[Option]]:
    path = place.world.received / "recipe.yaml"
    source = rng.choice(sorted(place.bases.recipes.iterdir()))
    shutil.copy(source, path)
    what, json = _spoil(place.world.received, place, rng), _json(rng)
    data = ("--dataset", str(place.bases.datasets / "v21") if source.name == "small.yaml" else "sample")
    # `import` writes a new recipe, never over one that is there.
    new = () if os.path.lexists(path) else ("received/recipe.yaml",)
    return f"{source.name}: {what}", [
        (3, lambda: Call(("plan", "--recipe", str(path), "--gpu", "rtx_a6000", *json))),
        (1, lambda: Call(("plan", "--recipe", str(path), "--device", "cpu", *json))),
        (3, lambda: Call(("data", "--recipe", str(path), *data, *json))),
        (1, lambda: Call(("stats", "--recipe", str(path), *data, *json))),
        (1, lambda: Call(("doctor", "--recipe", str(path), *data, *json))),
        (1, lambda: Call(("analyse", str(place.bases.logs / "openpi.log"), "--recipe", str(path), *json))),
        (
            1,
            lambda: Call(
                ("import", "openpi", "pi05_libero", "--gpu", "rtx_a6000", "--recipe", str(path)), new
            ),
        ),
    ]


def statistics(place: Place, rng: random.Random) -> tuple[str, list[Option]]:
    path = place.world.received / "stats" / rng.choice(["norm_stats.json", "norm_stats.json", "stats.json"])
    shutil.copytree(place.bases.stats, path.parent)
    what, json = mutate_file(path, path.parent, rng, place.hostile), _json(rng)
    asked = ("--recipe", str(place.bases.small), "--dataset", str(place.bases.datasets / "v21"))
    return what, [
        (4, lambda: Call(("stats", *asked, "--compare", str(path), *json))),
        (1, lambda: Call(("stats", *asked, "--compare", str(path.parent), *json))),
    ]


def pages(place: Place, rng: random.Random) -> tuple[str, list[Option]]:
    form = rng.choice(["sums", "sums", "index", "index", "gs"])
    source = place.bases.checkpoints / "zarr" / "7"
    site, address = clean_site(
        {str(path.relative_to(source)): path.read_bytes() for path in files_below(source)}, form
    )
    what = (
        "; ".join(
            mutate_site(site, rng, place.hostile)
            for _ in range(rng.choice([1, 1, 2]) if rng.randrange(_HONEST) else 0)
        )
        or "as it was made"
    )
    place.servers.show(site)
    base = "" if form == "gs" else place.servers.pages
    typed = Call(
        (), environment=(("STORAGE_EMULATOR_HOST", place.servers.pages),), servers=(place.servers.pages,)
    )
    odd = rng.choice(
        [
            "",
            "/",
            "/..",
            "/.",
            "//",
            "/params/..",
            "/lock",
            "/part",
            "/source.json",
            "/%2e%2e",
            "/a%00b",
            "/a\x1b[2J",
            "?x=..",
            "#..",
        ]
    )
    one = "/params/_METADATA" if rng.random() < 0.6 else odd
    tree = odd if rng.random() < 0.15 else ""
    return f"{form}: {what}", [
        (5, lambda: typed._replace(args=("fetch_tree", f"{base}{address}{tree}"))),
        (3, lambda: typed._replace(args=("fetch_file", f"{base}{address}{one}"))),
        (0.3, lambda: typed._replace(args=("predict", f"{base}{address}{tree}"))),
    ]


def command(place: Place, rng: random.Random) -> tuple[str, list[Option]]:
    line = rng.choice(COMMANDS)
    for _ in range(rng.choice([0, 1, 2])):
        line = (
            mutate_text(line.encode(), rng, place.hostile)
            .decode(errors="replace")[:100_000]
            .replace("\0", "")
        )
    words = (line,) if rng.random() < 0.7 else tuple(line.split())
    return line[:60], [
        (
            1,
            lambda: Call(
                (
                    "import",
                    "openpi",
                    *(words or ("",)),
                    *(("--gpu", "rtx_a6000") if rng.random() < 0.5 else ()),
                )
            ),
        )
    ]


KINDS: dict[str, Callable[[Place, random.Random], tuple[str, list[Option]]]] = {
    "run": run,
    "checkpoint": checkpoint,
    "dataset": dataset,
    "log": log,
    "recipe": recipe,
    "statistics": statistics,
    "pages": pages,
    "command": command,
}
