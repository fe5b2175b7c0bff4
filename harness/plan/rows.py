"""How many of a place's devices can share the rows of a batch."""

from __future__ import annotations

from harness.errors import HarnessError
from harness.plan.place import Place
from harness.received.text import word
from harness.recipe.schema import Recipe


def with_shared_rows(place: Place, recipe: Recipe, *, asked: bool) -> Place:
    """The place with as many of its devices as can share the global batch equally.

    Raises: HarnessError "more-devices-than-rows" if more were asked for than the batch has rows;
    "hosts-cannot-share" if no number of devices a host divides it.
    """
    rows = recipe.train.global_batch
    if asked and place.devices > rows:
        raise HarnessError(
            "more-devices-than-rows",
            f"{place.devices} devices cannot share a global batch of {rows}: each needs a row of it",
            got=f"{place.devices} devices",
            need=f"at most {rows}",
            fix=f"--set train.global_batch={place.devices}, or fewer devices",
        )
    shares = [n for n in range(place.hosts, place.devices + 1, place.hosts) if rows % n == 0]
    if not shares:
        divisible = rows + -rows % place.devices
        raise HarnessError(
            "hosts-cannot-share",
            f"{place.hosts} hosts cannot share a global batch of {rows} equally",
            got=f"{rows} rows",
            need=f"a multiple of {place.hosts}",
            fix=f"--set train.global_batch={word(str(divisible))}, or fewer hosts",
        )
    share = max(shares)
    if share == place.devices:
        return place
    note = (
        f"{share} of {place.devices} devices are used: a global batch of {rows} cannot be shared equally by"
        " more"
    )
    each = share // place.hosts
    return place._replace(
        devices=share,
        host_uuids=tuple(uuids[:each] for uuids in place.host_uuids),
        notes=(*place.notes, note),
    )
