"""A checkpoint as a policy on the wire: serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import HarnessError
from harness.received.consent import grant, hear
from harness.recipe.sampling import STEPS
from harness.show.progress import Progress
from harness.verbs.answers import answer, with_dataset
from harness.verbs.options import (
    BaseOption,
    CheckpointArgument,
    DatasetOption,
    DeviceOption,
    FetchOption,
    JsonOption,
    OfflineOption,
    OwnRecipeOption,
    RunOption,
    SetOption,
    StepsOption,
)
from harness.verbs.started import started

if TYPE_CHECKING:
    from harness.artifacts import Artifact, Serving
    from harness.checkpoint.locate import Located
    from harness.predict.predict import Device
    from harness.recipe.schema import Recipe
    from harness.run.directory import RunDir
    from harness.serve.open import OpenEngine, Wish

HostOption = Annotated[
    str,
    typer.Option(
        "--host",
        envvar="HARNESS_SERVE_HOST",
        help="Address to listen on; another than loopback needs a key.",
    ),
]
PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")]
KeyOption = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        envvar="HARNESS_API_KEY_FILE",
        help="File with the key that clients must send in its first line.",
    ),
]
WithoutKeyOption = Annotated[
    bool,
    typer.Option("--without-key", help="Let everybody who reaches --host use the policy, without a key."),
]
ClientsOption = Annotated[
    int, typer.Option("--max-clients", min=1, help="The most clients at a time; others are turned away.")
]
BatchOption = Annotated[
    int, typer.Option("--batch", help="Rows that are computed at once, for that many clients.")
]
PromptOption = Annotated[
    str | None, typer.Option("--default-prompt", help="The instruction of requests that have none.")
]
RecordOption = Annotated[
    Path | None,
    typer.Option("--record", help="Directory to keep what is asked and answered, up to 4 GiB."),
]
RtcOption = Annotated[
    bool,
    typer.Option("--rtc", help="Let requests bring the rest of their previous chunk, to go on from it."),
]
AttentionOption = Annotated[
    bool,
    typer.Option(
        "--xla-attention",
        help="Let XLA compile the attention of the action rows, and not the kernels of our own.",
    ),
]
CheckOption = Annotated[
    str | None,
    typer.Option(
        "--check",
        help=(
            "Serve nobody: replay frames of this dataset through the client's path and compare with predict."
        ),
    ),
]
FramesOption = Annotated[int, typer.Option("--frames", help="Frames that --check replays.")]


def serve(
    path: CheckpointArgument,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    api_key_file: KeyOption = None,
    without_key: WithoutKeyOption = False,
    max_clients: ClientsOption = 64,
    batch: BatchOption = 1,
    steps: StepsOption = STEPS,
    default_prompt: PromptOption = None,
    rtc: RtcOption = False,
    xla_attention: AttentionOption = False,
    record: RecordOption = None,
    check: CheckOption = None,
    frames: FramesOption = 8,
    dataset: DatasetOption = None,
    recipe: OwnRecipeOption = None,
    base: BaseOption = None,
    device: DeviceOption = None,
    sets: SetOption = None,
    fetch: FetchOption = False,
    offline: OfflineOption = False,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a checkpoint to openpi's clients: one observation in, one chunk of actions out.

    Ctrl-C or SIGTERM answers what is under way and writes serving.json. With --check: exit code 0 when all
    is equal, 1 when something differs.
    """
    from harness.checkpoint.locate import locate, recipe_of
    from harness.predict.predict import output_directory
    from harness.run.directory import RunDir
    from harness.serve.access import check_open, listenable, read_key
    from harness.serve.open import Wish, check_wish
    from harness.serve.server import Settings
    from harness.show.serving import serve_check_table, serving_table

    console = Progress()
    hear(fetch=fetch, offline=offline)
    grant(base)
    key = None if api_key_file is None else read_key(api_key_file)
    if check is None:
        check_open(host, key, without_key=without_key)
    check_wish(wish := Wish(steps, batch, default_prompt, base, rtc, not xla_attention))
    located = locate(path)
    own = recipe_of(located, recipe, with_dataset(sets, check or dataset))
    directory = RunDir(output_directory(located, run))
    if check is not None:
        found = _checked(located, own, wish, frames, device, console)
        _write(directory, found, console)
        answer(found, as_json, serve_check_table)
        raise typer.Exit(0 if found.verdict == "equal" else 1)
    if without_key:
        console.warn(f"everybody who reaches {host} port {port} may use this policy: --without-key")
    listenable(host, port)
    listen = Settings(host, port, key, max_clients)
    served = _served(located, own, wish, listen, record, device, console, named=dataset is not None)
    _write(directory, served, console)
    answer(served, as_json, serving_table)


def _write(directory: RunDir, artifact: Artifact, console: Progress) -> None:
    """Writes the artifact; somebody else's run may lie where only he may write, and that ends nothing."""
    try:
        console.say(f"written: {directory.write(artifact)}")
    except HarnessError as error:
        console.warn(f"{artifact.FILE} was not written: {error.what}")


def _engine() -> OpenEngine:
    """What makes the engine, for serving and for --check alike."""
    from harness.serve.engine import open_engine

    return open_engine


def _start(device: str | None, located: Located, own: Recipe, console: Progress) -> Device:
    """The device; JAX also starts on the host's processor, where noise is drawn."""
    return started(
        device,
        lambda on: console.say(f"checkpoint {located.path}: recipe {own.name}, on {on.name}"),
        with_host=True,
    )


def _checked(
    located: Located, own: Recipe, wish: Wish, frames: int, device: str | None, console: Progress
) -> Any:
    from harness.data.dataset import open_for
    from harness.serve.check import check

    _, data = open_for(own.parts()[0])
    on = _start(device, located, own, console)
    return check(located, own, data, frames, wish, on, console.say, _engine())


def _served(
    located: Located,
    own: Recipe,
    wish: Wish,
    settings: Any,
    record: Path | None,
    device: str | None,
    console: Progress,
    *,
    named: bool,
) -> Serving:
    """What the server did, after it has ended."""
    import asyncio

    from harness.data.dataset import open_for
    from harness.serve.open import open_served
    from harness.serve.record import Recorder
    from harness.serve.server import Server
    from harness.serve.summary import summary
    from harness.serve.tally import Tally
    from harness.supervise.signals import die_with_supervisor, stop_requests

    # `harness evaluate` serves its policy in a child process, which ends with it.
    die_with_supervisor()
    data = open_for(own.parts()[0])[1] if named else None
    recorder = None if record is None else Recorder(record)
    on = _start(device, located, own, console)
    tally = Tally()
    opened = open_served(
        located, own, wish, on, console.say, _engine(), data=data, others=lambda: tally.clients
    )
    for deviation in opened.deviations:
        console.warn(f"deviation: {deviation}")
    server = Server(opened.desk, settings, tally, recorder, console.warn)

    def ready(port: int) -> None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        console.say(f"serving on ws://{host}:{port} for up to {settings.max_clients} clients")

    async def run() -> None:
        loop = asyncio.get_running_loop()
        with stop_requests(lambda number: loop.call_soon_threadsafe(server.stop, number.name)):  # type: ignore[arg-type,return-value]
            await server.run(ready)

    asyncio.run(run())
    opened.desk.batcher.close()
    if recorder is not None:
        recorder.close()
    return summary(located, opened, wish, on, tally, recorder, server.ended_by)
