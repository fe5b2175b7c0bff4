"""The bill of materials of an image, in CycloneDX's JSON: base, system and Python packages, our source."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness.image.contents import Tree, digest
from harness.image.copyrights import read_copyright
from harness.image.licences import of_python, of_text, unlisted
from harness.image.owners import Owners, Python, System

# A name of CycloneDX for a property of one's own: a namespace, then the name.
UNLISTED = "harness:licence:unlisted"
UNKNOWN_LICENCE = "harness:licence:unknown"
# The licences were read out of a text for people, which may mean more than it names.
PROSE = "harness:licence:read-from-prose"
# So that the serial number follows from what is listed.
_NAMESPACE = uuid.UUID("6f3c6e6e-5d0b-5c3a-9a55-0c8f6f9f6a11")


class Locks(NamedTuple):
    """What the locks say.

    Environment (opt/venv) → Python package → sha256 of its archives; (system package, version) → sha256 of
    its .deb.
    """

    python: Mapping[str, Mapping[str, list[str]]]
    system: Mapping[tuple[str, str], str]


def read_locks(python: Mapping[str, str], system: str) -> Locks:
    """The locks from the texts of docker/lock/NAME.txt, by environment, and of docker/lock/apt-*.txt."""
    lines = [line.split() for line in system.splitlines() if line and not line.startswith("#")]
    archives = {home: _archives(text) for home, text in python.items()}
    return Locks(archives, {(parts[0], parts[1]): parts[2] for parts in lines if len(parts) == 3})


def _archives(text: str) -> dict[str, list[str]]:
    hashes: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if pin := re.match(r"\A([A-Za-z0-9._-]++)==", line):
            name = _canonical(pin[1])
        elif found := re.match(r"\A\s++--hash=sha256:([0-9a-f]{64})", line):
            hashes.setdefault(name, []).append(found[1])
    return hashes


def bill(tree: Tree, copyrights: Mapping[str, str], locks: Locks, *, name: str, base: str) -> str:
    """The bill of materials as JSON. `copyrights`: system package → the text of its copyright file.

    Raises: ImportError without cyclonedx-python-lib.
    """
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    owners = Owners(tree)
    release = _os_release(tree)
    revision = tree.texts.get("opt/harness/revision", b"unknown").decode(errors="replace").strip()
    image = Component(name=f"harness:{name}", type=ComponentType.CONTAINER, version=revision, bom_ref="image")
    parts = [_base(base), *(_system(each, copyrights, locks, release) for each in owners.system)]
    parts += [_python(each, locks, tree) for each in owners.python if each.name != "harness"]
    parts.append(_source(revision))
    made = Bom(
        components=parts,
        metadata=BomMetaData(component=image),
        serial_number=uuid.uuid5(_NAMESPACE, digest(tree.entries)),
    )
    # No time: the same contents have the same bill.
    made.metadata.timestamp = None
    made.register_dependency(image, parts)
    return JsonV1Dot6(made).output_as_string(indent=1) + "\n"


def lacks(text: str) -> list[str]:
    """The components whose licence is not on the stated list, or not known, a line each."""
    found = []
    for part in json.loads(text).get("components", []):
        told = {each["name"]: each["value"] for each in part.get("properties", [])}
        title = f"{part['name']} {part.get('version', '')}".strip()
        if UNLISTED in told:
            found.append(f"{title}: {told[UNLISTED]}")
        elif UNKNOWN_LICENCE in told:
            found.append(f"{title}: {told[UNKNOWN_LICENCE]}")
    return found


def _base(base: str) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    name, _, digest_text = base.partition("@")
    hashes = []
    if re.fullmatch(r"sha256:[0-9a-f]{64}", digest_text):
        hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest_text.removeprefix("sha256:"))]
    return Component(
        name=name,
        type=ComponentType.CONTAINER,
        version=digest_text or "not named by a digest",
        hashes=hashes,
        bom_ref="base",
    )


def _system(package: System, copyrights: Mapping[str, str], locks: Locks, release: Mapping[str, str]) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    sha256 = locks.system.get((package.name, package.version))
    family = release.get("ID", "debian")
    url = PackageURL(
        "deb",
        family,
        package.name,
        package.version,
        {"arch": package.architecture, "distro": f"{family}-{release.get('VERSION_ID', 'unknown')}"},
    )
    named = read_copyright(copyrights.get(package.name))
    return Component(
        name=package.name,
        type=ComponentType.LIBRARY,
        version=package.version,
        purl=url,
        bom_ref=f"system/{package.name}/{package.architecture}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else [],
        licenses=_licences(named.licences),
        properties=[
            *_properties(named.licences, named.why),
            *([Property(name=PROSE, value="true")] if named.prose and named.licences else []),
        ],
    )


def _python(package: Python, locks: Locks, tree: Tree) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    name = _canonical(package.name)
    named = of_python(package.fields)
    licences = named or _by_text(package, tree)
    properties = _properties(licences, "the package's metadata names no licence")
    properties += [Property(name=PROSE, value="true")] if licences and not named else []
    # The archive that was installed is one of the lock's; pip does not write down which.
    archives = locks.python.get(package.home, {}).get(name, [])
    record = tree.entries.get(f"{package.directory}/RECORD")
    if record is not None:
        properties.append(Property(name="harness:record:sha256", value=record.sha256))
    properties.append(Property(name="harness:environment", value=f"/{package.home}"))
    return Component(
        name=package.name,
        type=ComponentType.LIBRARY,
        version=package.version,
        purl=PackageURL("pypi", None, name, package.version),
        bom_ref=f"python/{package.directory}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256) for sha256 in archives],
        licenses=_licences(licences),
        properties=properties,
    )


def _by_text(package: Python, tree: Tree) -> list[str]:
    """The licence of a package's licence file, where its words are known."""
    for path in sorted(tree.texts):
        own = path.startswith(f"{package.directory}/") and "LICENSE" in path.rpartition("/")[2]
        if own and (found := of_text(tree.texts[path].decode(errors="replace"))):
            return found
    return []


def _source(revision: str) -> Any:
    from cyclonedx.model.component import Component, ComponentType

    licences = ["Apache-2.0"]
    return Component(
        name="harness",
        type=ComponentType.APPLICATION,
        version=revision,
        bom_ref="source",
        licenses=_licences(licences),
    )


def _licences(names: list[str]) -> list[Any]:
    """The names as CycloneDX wants them: one expression alone, or several licences by id or name."""
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.license import LicenseExpression

    made = [LicenseFactory().make_from_string(name) for name in names]
    if len(made) > 1:
        from cyclonedx.model.license import DisjunctiveLicense

        # An expression may only stand alone.
        made = [
            DisjunctiveLicense(name=name) if isinstance(each, LicenseExpression) else each
            for name, each in zip(names, made, strict=True)
        ]
    return made


def _properties(licences: list[str], why: str) -> list[Any]:
    from cyclonedx.model import Property

    if not licences:
        return [Property(name=UNKNOWN_LICENCE, value=why)]
    outside = unlisted(licences)
    return [Property(name=UNLISTED, value="; ".join(outside))] if outside else []


def _os_release(tree: Tree) -> dict[str, str]:
    text = tree.texts.get("usr/lib/os-release") or tree.texts.get("etc/os-release") or b""
    return dict(re.findall(r'^([A-Z_]+)="?([^"\n]*)"?$', text.decode(errors="replace"), re.MULTILINE))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_copyrights(root: Path, packages: list[System]) -> dict[str, str]:
    """System package → the text of its copyright file below `root`. A link may lead to another package's."""
    found = {}
    for package in packages:
        path = root / "usr/share/doc" / package.name / "copyright"
        try:
            folder = path.parent.resolve()
            if folder.is_relative_to(root.resolve()):
                found[package.name] = (folder / "copyright").read_text(errors="replace")
        except OSError:
            continue
    return found
