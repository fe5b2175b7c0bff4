"""Tests an image's bill of materials: its schema, what is in it, and the licences that are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.image.bom import Locks, bill, lacks, read_copyrights, read_locks
from harness.image.contents import BOM, LIST, SUMMARY, digest, of_directory, parse
from harness.image.describe import describe
from harness.image.licences import STATED, of_python, spelled, unlisted
from harness.image.owners import system_packages
from harness.image.parts import read_summary
from tests.support.image_root import SITE, STATUS, make_root

cyclonedx = pytest.importorskip("cyclonedx", reason="the test lock has it")
# Its two paragraphs that say what it is, broken into lines as some package does.
MIT = """MIT License

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction.

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.
"""
BASE = f"debian:12@sha256:{'b' * 64}"
PIP = f"certifi==2026.1 \\\n    --hash=sha256:{'c' * 64} \\\n    --hash=sha256:{'d' * 64}\n    # via x\n"
APT = f"# comment\nlibc6 2.36-9+deb12u14 {'e' * 64}\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path / "root")


def made(root: Path, locks: Locks | None = None) -> dict[str, Any]:
    copyrights = read_copyrights(root, system_packages(STATUS))
    text = bill(
        of_directory(root), copyrights, locks or read_locks({"opt/venv": PIP}, APT), name="cpu", base=BASE
    )
    return json.loads(text)


def part(body: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in body["components"] if each["name"] == name)


def test_it_has_the_schema_of_cyclonedx(root: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = json.dumps(made(root))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    # The validator sees what is wrong.
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.replace('"library"', '"libary"'))


def test_it_names_base_system_python_and_source(root: Path) -> None:
    body = made(root)
    assert part(body, "debian:12")["hashes"] == [{"alg": "SHA-256", "content": "b" * 64}]
    libc = part(body, "libc6")
    assert libc["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64&distro=debian-12"
    assert libc["hashes"] == [{"alg": "SHA-256", "content": "e" * 64}]
    certifi = part(body, "certifi")
    assert (certifi["purl"], certifi["version"]) == ("pkg:pypi/certifi@2026.1", "2026.1")
    assert {each["content"] for each in certifi["hashes"]} == {"c" * 64, "d" * 64}
    assert certifi["licenses"] == [{"license": {"id": "MPL-2.0"}}]
    assert part(body, "harness")["version"] == f"{'a' * 40}+source.0123456789abcdef"
    names = {each["name"] for each in body["components"]}
    assert names == {"debian:12", "libc6", "python3.11-minimal", "certifi", "numpy", "harness"}


def test_a_package_of_another_environment_has_the_hash_of_that_environments_lock(root: Path) -> None:
    """It may be in both, in two versions."""
    info = root / "opt/simulator/lib/python3.11/site-packages/certifi-2025.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: certifi\nVersion: 2025.1\nLicense: MPL-2.0\n")
    other = f"certifi==2025.1 \\\n    --hash=sha256:{'f' * 64}\n"
    body = made(root, read_locks({"opt/venv": PIP, "opt/simulator": other}, APT))
    found = {each["version"]: each for each in body["components"] if each["name"] == "certifi"}
    assert {each["content"] for each in found["2025.1"]["hashes"]} == {"f" * 64}
    assert {each["content"] for each in found["2026.1"]["hashes"]} == {"c" * 64, "d" * 64}
    there = {"name": "harness:environment", "value": "/opt/simulator"}
    assert there in found["2025.1"]["properties"]


@pytest.mark.parametrize("folder", ["", "licenses/"])
def test_a_licence_without_a_name_is_known_by_its_words(root: Path, folder: str) -> None:
    info = root / "opt/simulator/lib/python3.11/site-packages/robosuite-1.4.1.dist-info"
    (info / folder).mkdir(parents=True)
    (info / "METADATA").write_text("Name: robosuite\nVersion: 1.4.1\nLicense: UNKNOWN\n")
    assert any(line.startswith("robosuite 1.4.1: ") for line in lacks(json.dumps(made(root))))
    (info / folder / "LICENSE").write_text(MIT)
    body = made(root)
    assert part(body, "robosuite")["licenses"] == [{"license": {"id": "MIT"}}]
    assert {"name": "harness:licence:read-from-prose", "value": "true"} in part(body, "robosuite")[
        "properties"
    ]
    (info / folder / "LICENSE").write_text(MIT.replace("free of charge", "for a fee"))
    assert any(line.startswith("robosuite 1.4.1: ") for line in lacks(json.dumps(made(root))))


def test_the_same_contents_have_the_same_bill(root: Path, tmp_path: Path) -> None:
    assert made(root) == made(make_root(tmp_path / "again"))
    assert "timestamp" not in made(root)["metadata"]


def test_a_licence_that_is_not_stated_is_named_and_one_that_is_unknown_too(root: Path) -> None:
    lines = lacks(json.dumps(made(root)))
    assert [line.partition(": ")[0] for line in lines] == [
        "libc6 2.36-9+deb12u14",
        "python3.11-minimal 3.11.2-6",
    ]
    assert "odd-permissive" in lines[0]
    assert "no copyright file" in lines[1]


def test_a_package_that_is_not_as_locked_has_no_hash_of_the_lock(root: Path) -> None:
    other = read_locks({}, APT.replace("u14", "u15"))
    assert "hashes" not in part(made(root, other), "libc6")
    assert "hashes" not in part(made(root, other), "certifi")


def test_a_build_describes_a_tree_from_outside(root: Path, tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock/cpu.txt").write_text(PIP)
    (tmp_path / "lock/apt-debian-12.txt").write_text(APT)
    before = digest(of_directory(root).entries)
    lines = describe(root, tmp_path / "out", name="cpu", base=BASE, lock=tmp_path / "lock/cpu.txt")
    assert digest(of_directory(root).entries) == before
    for path in (BOM, LIST, SUMMARY):
        (root / path).write_bytes((tmp_path / "out" / Path(path).name).read_bytes())
        (root / path).chmod(0o644)
    said = read_summary((root / SUMMARY).read_text())
    entries = parse((root / LIST).read_text())
    # The bill is part of what is listed; its owner is root's, as COPY makes it.
    assert entries[BOM].owner == "0:0"
    assert said.content == digest(entries)
    seen = of_directory(root).entries
    assert {path: entry.sha256 for path, entry in entries.items()} == {
        path: entry.sha256 for path, entry in seen.items()
    }
    assert lines[0].startswith(f"content {said.content}")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"license-expression": ["MIT OR Apache-2.0"]}, ["MIT OR Apache-2.0"]),
        ({"license": ["MIT License"]}, ["MIT"]),
        ({"license": ["Apache 2.0"]}, ["Apache-2.0"]),
        ({"classifier": ["License :: OSI Approved :: BSD License"]}, ["BSD"]),
        ({"license": ["NVIDIA Proprietary Software"]}, ["NVIDIA Proprietary Software"]),
        ({"license": ["x" * 500], "classifier": ["License :: OSI Approved :: MIT License"]}, ["MIT"]),
        ({"classifier": ["License :: OSI Approved"]}, []),
        ({}, []),
    ],
)
def test_licences_of_python_packages(fields: dict[str, list[str]], expected: list[str]) -> None:
    assert of_python(fields) == expected


@pytest.mark.parametrize(
    ("expressions", "expected"),
    [
        (["MIT"], []),
        (["MIT OR Proprietary"], []),
        (["MIT AND Proprietary"], ["Proprietary"]),
        (["GPL-2.0-or-later WITH GCC-exception-3.1"], []),
        (["LicenseRef-NVIDIA-Proprietary"], ["LicenseRef-NVIDIA-Proprietary"]),
        (["(MIT AND BSD-3-Clause) OR Apache-2.0"], []),
        (["(MIT OR Proprietary) AND Odd"], ["Odd"]),
        (["Proprietary OR MIT AND Odd"], ["Proprietary"]),
        (["MIT License (MIT)"], []),
        (["The Odd License (v2)"], ["The Odd License (v2)"]),
        (["MIT OR"], ["MIT OR"]),
        ([""], [""]),
    ],
)
def test_what_is_not_on_the_stated_list(expressions: list[str], expected: list[str]) -> None:
    assert unlisted(expressions) == expected


def test_the_stated_list_spells_its_own_names() -> None:
    assert {name: spelled(name) for name in STATED} == {name: name for name in STATED}
    assert SITE.startswith("opt/venv")
