"""The gate before a run: doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.artifacts.plan import Backend
from harness.flow.diagnose import data_here, diagnose, plan_or_refusal
from harness.received.consent import hear
from harness.show.progress import Progress, busy
from harness.verbs.answers import answer, with_dataset
from harness.verbs.options import (
    AllowOption,
    DatasetOption,
    DeviceOption,
    FetchOption,
    JsonOption,
    OfflineOption,
    RecipeOption,
    RunOption,
    SetOption,
)


def doctor(
    recipe: RecipeOption = None,
    dataset: DatasetOption = None,
    device: DeviceOption = None,
    backend: Annotated[
        Backend | None,
        typer.Option(
            "--backend", help="Whose trainer. Default: the run's, else $HARNESS_BACKEND, else ours."
        ),
    ] = None,
    online: Annotated[
        bool,
        typer.Option(
            "--online", help="Also ask the servers of what must still be fetched whether they answer."
        ),
    ] = False,
    allow: AllowOption = None,
    sets: SetOption = None,
    fetch: FetchOption = False,
    offline: OfflineOption = False,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Whether a run can be expected to go well here: driver, GPU, memory, disk, clock, keys, data; every
    finding with its fix.
    """
    from harness.doctor.examine import check_allowed
    from harness.flow.chain import chain_for
    from harness.flow.together import Lead, all_processes, follow
    from harness.show.doctor import doctor_table

    check_allowed(allow or [])
    hear(fetch=fetch, offline=offline)
    console = Progress()
    with all_processes(console) as peers:
        if peers.index:
            # It ends with the exit code of process 0, which prints what was found about all.
            follow(peers, console, run, None, device)
        chain = chain_for(run, recipe, with_dataset(sets, dataset), backend)
        lead, allowed = Lead(peers), allow or []
        with busy("examining"):
            machine = chain.machine()
            lead.begin(chain.run, machine, device)
            known = data_here(chain)
            if known is not None:
                lead.look_at(chain.run, known[0])
            data = known[0] if known else None
            made = plan_or_refusal(chain, machine, data, device, allow=allowed, **lead.asked())
            found = diagnose(
                chain, machine, made, known, allow=allowed, online=online, device=device, hosts=lead.hosts
            )
        lead.end(1 if found.errors else 0)
    answer(found, as_json, doctor_table)
    raise typer.Exit(1 if found.errors else 0)
