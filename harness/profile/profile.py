"""Joins a trace with the program that ran: seconds, launches, operations and bytes of each part of a step."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from harness.artifacts import Profile, ProfileKernel, ProfileRow, Traced
from harness.errors import HarnessError
from harness.plan.launches import Kernel, kernels_of
from harness.profile.source import OTHER, PROGRAMS, Origin, origins, program_of
from harness.profile.trace import Event, covered, events_of
from harness.received.files import read_received
from harness.received.text import word
from harness.run.directory import PROFILE, PROGRAM, RECIPE, RunDir
from harness.run.status import check_is_run, read_status
from harness.units import GIB

TO_DEVICE, FROM_DEVICE = "copies to the device", "copies from the device"
# Of a device whose steps are of 50,000 kernels, three steps are some 50 MB.
_TRACE_BYTES, _PROGRAM_BYTES = 2 * GIB, GIB
_NANO = 1e-9


def profile(run: Path, kernels: int = 20) -> Profile:
    """Where the time of the traced steps of `run` went, with so many of the longest kernels.

    Raises: HarnessError "profile-missing", "profile-unreadable"; those of reading files.
    """
    directory = run / PROFILE
    traced = RunDir(directory).read(Traced)
    if traced is None:
        check_is_run(RunDir(run))
    if traced is None or traced.trace is None:
        raise HarnessError(
            "profile-missing",
            f"no step of {run} was traced",
            need=f"{PROFILE}/{Traced.FILE} of a run that was trained with --profile",
            fix=_trace_anew(run),
        )
    try:
        text = read_received(directory / PROGRAM, run, _PROGRAM_BYTES).decode()
        data = read_received(directory / traced.trace, run, _TRACE_BYTES)
        found, compiled = origins(text), {each.name: each for each in kernels_of(text, unknown=True)}
        events = events_of(data, set(compiled), program_of(text))
    except (ValueError, OSError) as error:
        raise HarnessError(
            "profile-unreadable",
            f"the trace in {directory} cannot be read",
            got=str(error),
            fix=f"{_trace_anew(run)} writes another",
        ) from error
    if not events:
        raise HarnessError(
            "profile-unreadable",
            f"the trace in {directory} holds no kernel of {traced.device}",
            need="a profiler that sees the device: on NVIDIA cards CUPTI, which some drivers under WSL lack",
            fix=f"{_trace_anew(run)}, on a machine whose driver has it",
        )
    return _joined(traced, events, found, compiled, kernels)


def _trace_anew(run: Path) -> str:
    """The command that traces steps: of the run, if it has steps left, else of its recipe beside it."""
    try:
        ended = read_status(RunDir(run)).state == "finished"
    except HarnessError:
        ended = False
    if not ended:
        return f"harness train --resume --run {word(run)} --profile 3"
    beside = run.absolute().with_name(f"{run.absolute().name}-profile")
    return f"harness train --recipe {word(run / RECIPE)} --run {word(beside)} --steps 6 --profile 3"


def _joined(
    traced: Traced,
    events: list[Event],
    found: dict[str, Origin],
    compiled: dict[str, Kernel],
    most: int,
) -> Profile:
    # Of one step and one device, so that they stand beside what the compiler says of a device.
    times = traced.steps * len({event.device for event in events})
    seconds, launches = defaultdict[str, float](float), Counter[str]()
    origin: dict[str, Origin] = {}
    for event in events:
        name = event.name if event.program is None else f"{event.name} of {event.program}"
        seconds[name] += (event.end - event.start) * _NANO / times
        launches[name] += 1
        origin[name] = _of(event, found)
    rows: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, one in origin.items():
        rows[one.part, one.turn].append(name)
    busy = covered(events) / times
    return Profile(
        platform=traced.platform,
        device=traced.device,
        devices=traced.devices,
        first_step=traced.first_step,
        steps=traced.steps,
        batch=traced.batch,
        step_s=traced.seconds / traced.steps,
        busy_s=busy,
        link_s=covered(event for event in events if event.link) / times,
        link_alone_s=busy - covered(event for event in events if not event.link) / times,
        unnamed_s=sum(seconds[name] for name, one in origin.items() if one is _UNKNOWN),
        rows=sorted(
            (
                ProfileRow(
                    part=part,
                    turn=turn,
                    seconds=sum(seconds[name] for name in names),
                    launches=sum(launches[name] for name in names) / times,
                    operations=sum(_total(compiled.get(name), "operations") for name in names),
                    bytes=sum(_total(compiled.get(name), "bytes") for name in names),
                )
                for (part, turn), names in rows.items()
            ),
            key=lambda row: -row.seconds,
        ),
        kernels=[
            ProfileKernel(
                name=name,
                **origin[name]._asdict(),
                seconds=seconds[name],
                launches=launches[name] / times,
            )
            for name in sorted(seconds, key=lambda name: -seconds[name])[:most]
        ],
        jax=traced.jax,
        trace=f"{PROFILE}/{traced.trace}",
    )


_UNKNOWN, _ELSEWHERE = Origin("", OTHER, "", None), Origin("", PROGRAMS, "", None)


def _of(event: Event, found: dict[str, Origin]) -> Origin:
    if event.link:
        return Origin("copy", TO_DEVICE if "h2d" in event.name.lower() else FROM_DEVICE, "", None)
    if event.program is not None:
        return _ELSEWHERE
    return found.get(event.name, _UNKNOWN)


def _total(kernel: Kernel | None, what: str) -> int:
    return 0 if kernel is None else kernel.times * int(getattr(kernel, what))
