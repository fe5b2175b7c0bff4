"""What the image that this command runs in says of itself."""

from __future__ import annotations

from typing import Annotated

import typer

# Of many differences the first have the cause.
_MOST = 20


def image(
    first: Annotated[
        str | None,
        typer.Argument(metavar="IMAGE", help="On the host: an image of the engine, read to the last byte."),
    ] = None,
    second: Annotated[
        str | None, typer.Argument(metavar="OTHER", help="The two are compared, entry by entry.")
    ] = None,
    sbom: Annotated[
        bool, typer.Option("--sbom", help="Print the image's bill of materials, as CycloneDX's JSON.")
    ] = False,
    licences: Annotated[
        bool, typer.Option("--licences", help="Name the parts whose licence is not on the stated list.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read every file, and name what is not as the image's list says.")
    ] = False,
) -> None:
    """What an image holds: its content digest, its parts, its bill of materials. Inside of one: of that one.

    Exit code 1 when --check finds a difference, or two images differ.
    """
    if first is not None:
        raise typer.Exit(_of_engine(first, second))
    from harness.image.bom import lacks
    from harness.image.here import examined, own_text
    from harness.received.text import visible

    if sbom:
        print(visible(own_text("bom")), end="")
        return
    if licences:
        outside = lacks(own_text("bom"))
        print("\n".join([*map(visible, outside), f"{len(outside)} not on the stated list, or not known"]))
        return
    from harness.image.parts import read_summary

    said = read_summary(own_text("summary"))
    print(f"{said.content}  {len(said.parts)} parts")
    if not check:
        return
    here, notes = examined()
    for label, note in notes.items():
        print(visible(f"{label}: {note}"))
    for name, value in (here.environment or {}).items():
        print(visible(f"environment variable {name}: {value}"))
    for why in here.unknown.values():
        print(visible(why))
    equal = here.content == said.content and not here.environment
    print("as listed" if equal else f"not as listed: {here.content}")
    if not equal:
        raise typer.Exit(1)


def _of_engine(first: str, second: str | None) -> int:
    """Prints the digest of one image of the engine, or what differs between two; the exit code."""
    from harness.image.contents import digest
    from harness.received.text import visible
    from harness.replay.engine import connect, contents, get_image
    from harness.replay.layers import compare_layers

    client = connect()
    if second is None:
        tree = contents(client, get_image(client, first).id)
        print(f"{digest(tree.entries)}  {len(tree.entries)} entries")
        return 0
    found = compare_layers(client, first, second)
    for name, sha256, count in zip((first, second), found.digests, found.entries, strict=True):
        print(f"{sha256}  {count} entries  {name}")
    for each in found.differences[:_MOST]:
        print(visible(each.text()))
    print(f"{len(found.differences)} differing")
    return 1 if found.differences else 0
