"""Chooses the plan: how this machine, or a card that is not here, carries out a recipe.

The search takes the recipe as it is, then each approximate change of it (plan.candidates has the order). For
each it tries all exact levers, and for each lever set it finds the largest microbatch that fits. The fastest
plan that fits is chosen. While an exact plan fits, nothing approximate is tried. A plan fits if the largest
of its phases, as the compiler counts it, is within the usable bytes, and if the host memory is there. Disk
space is reported, and the doctor checks it. It does not decide: a disk can be cleared, and must never change
the experiment.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from harness.artifacts import Candidate, Dataset, Levers, Machine, Plan
from harness.plan import candidates, cluster, cost, kept, memory, operations, saving, shared
from harness.plan.asked import Ask, Tools
from harness.plan.atlas import shipped
from harness.plan.need import Oracle, enough, not_asked, shortage
from harness.plan.notes import notes_of, smallest_card
from harness.plan.place import Place, absent, instead, present
from harness.plan.rows import with_shared_rows
from harness.recipe.deviations import deviations
from harness.recipe.parameters import check_who_is_trained, counts
from harness.recipe.schema import Recipe

# A larger microbatch must save more than this share of a step: the cost model is some percent off, and on a
# card that is nearly full XLA computes again what it could have kept.
_WORTH = 0.07


def choose(
    recipe: Recipe,
    machine: Machine,
    dataset: Dataset | None,
    ask: Ask = Ask(),  # noqa: B008 - immutable
    *,
    inputs: str = "",
    tools: Tools | None = None,
    advise: bool = True,
) -> Plan:
    """The plan of `recipe` for this machine's GPUs, for its CPU, or for the card that `ask` names.

    `advise` adds notes, for which other cards are tried. `dataset` gives the longest prompt. Without it the
    longest prompt known for that dataset is used, or else the recipe's own padding.
    Raises: HarnessError "no-gpu", "gpu-unknown", "gpu-count-invalid", "gpu-memory-unknown", "gpu-too-old",
    "more-devices-than-rows", "compile-failed", "compile-timeout", "no-target-compiler",
    "lora-trains-everything", "hosts-unlike", "hosts-cannot-share", "slower-than-one-host".
    """
    check_who_is_trained(recipe)
    tools = tools or Tools(shipped())
    place = _place(recipe, machine, ask, tools)
    made, chosen = _Search(recipe, place, dataset, tools, ask).run()
    total, trained = counts(recipe.model, recipe.train.trained)
    together = cluster.described(recipe, place, chosen)
    if not ask.slower:
        cluster.refuse_slower(together, chosen)
    return Plan(
        inputs=inputs,
        recipe=recipe.name,
        recipe_sha256=recipe.sha256(),
        device=place.name,
        device_uuid=place.uuids[0] if place.uuids else None,
        device_uuids=list(place.uuids[: place.devices]),
        usable_bytes=place.usable_bytes,
        free_bytes=place.free_bytes,
        context_bytes=place.context_bytes,
        margin_bytes=place.margin_bytes,
        memory_fraction=shared.memory_fraction(place, chosen),
        shared_memory=place.shared,
        host_usable_bytes=place.host_usable_bytes,
        parameters_total=total,
        parameters_trained=trained,
        chosen=chosen,
        candidates=made,
        cluster=together,
        notes=(
            notes_of(
                recipe,
                machine,
                place,
                chosen,
                atlas=tools.atlas,
                smallest_card=partial(_smallest_card, recipe, dataset, tools, place),
                exact=ask.exact,
                together=together,
            )
            if advise
            else []
        ),
    )


def _place(recipe: Recipe, machine: Machine, ask: Ask, tools: Tools) -> Place:
    """The place of the plan, with as many devices as can share the global batch equally."""
    elsewhere = ask.gpu is not None or (
        ask.vram_bytes is not None and not machine.gpus and ask.device != "cpu"
    )
    if elsewhere:
        place = absent(ask.gpu, ask.vram_bytes, ask.host_ram_bytes, clusters=True)
        place = cluster.linked(place, ask.net)
    elif ask.hosts:
        place = cluster.everywhere(recipe, ask.hosts, device=ask.device, given=ask.net)
    else:
        place = present(
            recipe, machine, device=ask.device, vram_bytes=ask.vram_bytes, host_ram_bytes=ask.host_ram_bytes
        )
    if tools.atlas is None or ask.recompile:
        place = place._replace(stands_in=False)
    return with_shared_rows(place, recipe, asked=ask.gpu is not None)


def _smallest_card(recipe: Recipe, dataset: Dataset | None, tools: Tools, place: Place) -> str:
    """The smallest card that would do in this place, as a sentence, as far as the atlas knows."""
    known = tools._replace(compile=not_asked)

    def fits_exactly(card: str) -> bool:
        return _Search(recipe, instead(place, card), dataset, known, Ask(exact=True)).run()[1] is not None

    return smallest_card(recipe, place, fits_exactly)


class _Search:
    """The candidates of one recipe at one place."""

    def __init__(self, recipe: Recipe, place: Place, dataset: Dataset | None, tools: Tools, ask: Ask) -> None:
        self._recipe, self._place, self._ask = recipe, place, ask
        self._dataset, self._tools = dataset, tools
        self._oracle = Oracle(place, tools.atlas, tools.compile, tools.say, recompile=ask.recompile)
        tokens = candidates.prompt_tokens(recipe, dataset)
        self._base = Levers(
            platform=place.platform,
            devices=place.devices,
            hosts=place.hosts,
            microbatch=1,
            prompt_tokens=tokens,
            cameras=[camera for camera, feature in recipe.data.cameras.items() if feature],
        )

    def run(self) -> tuple[list[Candidate], Candidate | None]:
        """(all candidates, the chosen one first; the chosen one)."""
        made: list[Candidate] = []
        in_vain: list[Candidate] = []
        for changes in candidates.changes_of(self._recipe):
            if changes and (self._ask.exact or self._place.platform == "cpu"):
                break
            recipe = candidates.changed(self._recipe, changes)
            sets = self._lever_sets(recipe)
            best, tried = self._with(recipe, changes, sets)
            made += tried
            # Saves that are streamed may make room where the host has none for a copy of the state. Where
            # they win nothing they are not shown, and those that do not fit only where nothing fits.
            best, tried = self._streamed(recipe, changes, sets, best)
            if any(one is best for one in tried):
                made += [one for one in tried if one.verdict == "fits"]
            in_vain += [one for one in tried if one.verdict == "rejected"]
            if best is not None:
                again = partial(self._candidate, recipe, changes)
                asked = kept.Answers(partial(self._rank, recipe), again, self._may_ask(recipe, best))
                others = self._elsewhere(recipe, sets)
                best, made = kept.with_more_kept(recipe, self._place, best, made, asked, others)
                best, made = saving.streamed_where_unknown(self._place, best, made, again)
                return [best, *(one for one in made if one is not best)], best
        return made + in_vain, None

    def _streamed(
        self, recipe: Recipe, changes: candidates.Changes, sets: list[Levers], best: Candidate | None
    ) -> tuple[Candidate | None, list[Candidate]]:
        """`_with` for streamed saves. No approximate plan is compiled for them if there is an atlas."""
        search, sets = self, saving.streamed_where_short(recipe, sets, self._place)
        atlas = self._tools.atlas
        if changes and atlas is not None and not atlas.refused and not self._ask.recompile:
            place = self._place._replace(stands_in=True)
            search = _Search(self._recipe, place, self._dataset, self._tools, self._ask)
            sets = [levers for levers in sets if search._is_known(recipe, levers)]
        return search._with(recipe, changes, sets, best)

    def _elsewhere(self, recipe: Recipe, sets: list[Levers]) -> list[Levers]:
        """The plans of these places of the state whose step is known, with saves that fit the host."""
        sizes = candidates.divisors(recipe.train.global_batch // self._place.devices)
        short = saving.streamed_where_short(recipe, sets, self._place)
        fitting = [one for one in sets if saving.streamed(one) not in short] + short
        return [
            candidates.cut(recipe, one, size) for one in fitting for size in self._known(recipe, one, sizes)
        ]

    def _lever_sets(self, recipe: Recipe) -> list[Levers]:
        """Where the state may lie, cheapest first."""
        place, devices = self._place, self._place.devices
        shards = sorted({1, devices // place.hosts, devices})
        host = place.platform == "cuda" and not place.wsl and not place.shared
        sets = candidates.lever_sets(self._base, recipe, shards=shards, host=host)
        # For a card that the atlas was not made for, the lever sets that it knows from others suffice.
        return [levers for levers in sets if self._is_known(recipe, levers)] or sets

    def _with(
        self,
        recipe: Recipe,
        changes: candidates.Changes,
        sets: list[Levers],
        best: Candidate | None = None,
    ) -> tuple[Candidate | None, list[Candidate]]:
        """(the fastest plan that fits with these changes and one of these lever sets, or `best` if that is
        faster; every plan tried).
        """
        tried = list[Candidate]()
        for levers in sets:
            sizes = self._microbatches(recipe, levers)
            if best is not None and not self._promises(recipe, levers, sizes, best):
                continue
            found = [self._largest(recipe, changes, levers, sizes)]
            if found[0].verdict == "fits" and found[0].levers.microbatch < sizes[-1]:
                # Attention over a few samples at a time leaves room for a larger microbatch.
                chunked = levers.model_copy(update={"attention": "chunked"})
                sizes = self._microbatches(recipe, chunked)
                if self._is_known(recipe, chunked) and self._promises(recipe, chunked, sizes, found[0]):
                    found.append(self._largest(recipe, changes, chunked, sizes))
            tried += found
            fitting = [one for one in [best, *found] if one is not None and one.verdict == "fits"]
            best = min(fitting, key=lambda one: self._rank(recipe, one.levers), default=None)
        return best, tried

    def _promises(self, recipe: Recipe, levers: Levers, sizes: list[int], best: Candidate) -> bool:
        """Whether these levers may be faster than `best`. If the atlas knows only `best`, that suffices."""
        if best.source in ("atlas", "interpolated") and not self._known(recipe, levers, sizes):
            return False
        levers = candidates.cut(recipe, levers, sizes[-1])
        return self._rank(recipe, levers) < self._rank(recipe, best.levers)

    def _microbatches(self, recipe: Recipe, levers: Levers) -> list[int]:
        """The microbatches worth trying, ascending, up to the first beyond which the step gains nothing."""
        sizes = candidates.divisors(recipe.train.global_batch // levers.devices)
        if self._place.card is None:
            return sizes
        fastest = min(self._seconds(recipe, candidates.cut(recipe, levers, size)) for size in sizes)
        enough = next(
            size
            for size in sizes
            if self._seconds(recipe, candidates.cut(recipe, levers, size)) <= fastest * (1 + _WORTH)
        )
        worth = [size for size in sizes if size <= enough]
        return worth if self._tools.thorough else self._known(recipe, levers, worth) or worth

    def _is_known(self, recipe: Recipe, levers: Levers) -> bool:
        """Whether the atlas knows a microbatch of these levers; true if the compiler answers for the rest."""
        sizes = candidates.divisors(recipe.train.global_batch // levers.devices)
        return not self._place.stands_in or bool(self._known(recipe, levers, sizes))

    def _known(self, recipe: Recipe, levers: Levers, sizes: list[int]) -> list[int]:
        """Those of the microbatches whose step is known, or bounded, without the compiler."""
        return [size for size in sizes if self._oracle.has_step(recipe, candidates.cut(recipe, levers, size))]

    def _may_ask(self, recipe: Recipe, best: Candidate) -> Callable[[Levers], bool]:
        """Whether a plan like `best` may be asked about. If the atlas knows only `best`, that suffices.

        The compiler is asked about none whose state lies elsewhere.
        """
        atlas = best.source in ("atlas", "interpolated") and not self._tools.thorough
        place = kept.where(best.levers)
        return lambda levers: (
            self._oracle.tells(recipe, levers)
            or not (atlas or self._place.stands_in or kept.where(levers) != place)
        )

    def _rank(self, recipe: Recipe, levers: Levers) -> float:
        """The seconds by which plans are compared."""
        return saving.ranked(self._seconds(recipe, levers), levers)

    def _seconds(self, recipe: Recipe, levers: Levers) -> float:
        """Predicted seconds of a step, for ranking.

        A card outside the table has its stand-in's figures. On the CPU it is the number of accumulation
        steps.
        """
        place = self._place
        if place.card is None:
            return float(levers.accumulation_steps)
        return cost.seconds_per_step(recipe, levers, place.card, place.cores, place.net_bytes_per_s)

    def _largest(
        self, recipe: Recipe, changes: candidates.Changes, levers: Levers, sizes: list[int]
    ) -> Candidate:
        """The plan of the largest microbatch that fits, or the rejected plan of the smallest."""
        first = self._candidate(recipe, changes, candidates.cut(recipe, levers, sizes[-1]))
        if first.verdict == "fits" or len(sizes) == 1:
            return first
        best = self._candidate(recipe, changes, candidates.cut(recipe, levers, sizes[0]))
        if best.verdict == "rejected":
            return best
        low, high = 0, len(sizes) - 1
        while high - low > 1:
            middle = (low + high) // 2
            tried = self._candidate(recipe, changes, candidates.cut(recipe, levers, sizes[middle]))
            if tried.verdict == "fits":
                best, low = tried, middle
            else:
                high = middle
        return best

    def _candidate(self, recipe: Recipe, changes: candidates.Changes, levers: Levers) -> Candidate:
        place, on_cpu = self._place, self._place.platform == "cpu"
        host = (shared if place.shared else memory).host_bytes(recipe, levers)
        together: dict[str, int] = {}
        if place.shared:
            short = shared.short({"save": shared.save_bytes(recipe, levers)}, place.pool_usable_bytes)
        else:
            short = None if on_cpu else shortage(host, place.host_usable_bytes, "of host memory")
        need = self._oracle.need(recipe, levers, hopeless=short is not None)
        if place.shared:
            together = shared.phases(recipe, levers, need)
            short = shared.short(together, place.pool_usable_bytes)
        at_least = need.source == "counted"
        short = shortage(need.device_bytes, place.usable_bytes, "", at_least=at_least) or short
        seconds, unknown = self._told_seconds(recipe, levers)
        if on_cpu:
            unknown["device_bytes"] = "on a CPU the device is the host: see host_bytes"
        return Candidate(
            levers=levers,
            changes=changes,
            deviations=deviations(self._recipe, recipe) if changes else [],
            device_bytes=None if on_cpu else need.device_bytes,
            host_bytes=need.device_bytes if on_cpu else max(host, memory.PROCESS_BYTES + need.host_bytes),
            disk_bytes=2 * memory.checkpoint_bytes(recipe),
            phases=need.phases,
            shared_phases=together,
            seconds_per_step=seconds,
            flops_per_step=operations.flops_per_sample(recipe, levers) * recipe.train.global_batch,
            verdict="rejected" if short else "fits",
            reason=short
            or (shared.enough(together, place.pool_usable_bytes) if together else enough(need, place)),
            source=need.source,
            breakdown=memory.breakdown(recipe, levers, need.device_bytes, need.activations),
            unknown=unknown,
        )

    def _told_seconds(self, recipe: Recipe, levers: Levers) -> tuple[float | None, dict[str, str]]:
        if self._place.card is None:
            return None, {"seconds_per_step": "no cost model of a CPU"}
        if not self._place.named:
            return None, {"seconds_per_step": f"{self._place.name} is not in the table of cards"}
        return self._seconds(recipe, levers), {}
