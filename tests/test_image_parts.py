"""Tests that what differs between two images is named, and by verify first."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.artifacts import Manifest
from harness.image.contents import Tree, of_directory
from harness.image.here import claimed, examined
from harness.image.parts import differing, named, some, summary, told, value_of
from harness.image.variables import _OF_A_BUILD, differences, is_compared, of_container
from harness.redact import redact, redact_value
from harness.run import cluster
from harness.verify.fields import compare_fields, first_difference, overall
from tests.support.image_root import SITE, STATUS, make_listed_root, make_root
from tests.support.report_run import manifest as manifest_of_a_run
from tests.support.verifying import found_as


def replace(path: str, old: str, new: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new))

    return change


def write(path: str, text: str = "x\n") -> Callable[[Path], object]:
    def change(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)

    return change


def upgraded(root: Path) -> None:
    (root / "var/lib/dpkg/status").write_text(STATUS.replace("deb12u14", "deb12u15"))
    (root / "usr/lib/libc.so.6").write_text("elf of another version")


# What was planted, and how the part that is named first begins.
PLANTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a system package's version": (upgraded, "system package libc6"),
    "a byte of a system library": (write("usr/lib/libc.so.6", "elg"), "system package libc6"),
    "a file of a system package removed": (
        lambda root: (root / "usr/lib/python3.11/os.py").unlink(),
        "system package python3.11-minimal",
    ),
    "bytecode of the system's Python": (
        write("usr/lib/python3.11/__pycache__/os.cpython-311.pyc", "other"),
        "system package python3.11-minimal",
    ),
    "the mode of a system file": (
        lambda root: (root / "usr/lib/libc.so.6").chmod(0o755),
        "system package libc6",
    ),
    "a Python package's version": (
        replace(f"{SITE}/certifi-2026.1.dist-info/METADATA", "2026.1", "2026.2"),
        "Python package certifi",
    ),
    "a byte of a Python package's library": (write(f"{SITE}/numpy/core.so", "elg"), "Python package numpy"),
    "bytecode of a Python package": (
        write(f"{SITE}/certifi/__pycache__/__init__.cpython-311.pyc", "other"),
        "Python package certifi",
    ),
    "a script of a Python package": (write("opt/venv/bin/f2py"), "Python package numpy"),
    "the mode of a Python package's file": (
        lambda root: (root / SITE / "numpy/core.so").chmod(0o777),
        "Python package numpy",
    ),
    "a line of our source": (write(f"{SITE}/harness/cli.py"), "our source"),
    "the start of a container": (write("opt/harness/docker/entrypoint"), "our source"),
    "an extra .pth": (write(f"{SITE}/evil.pth"), f"file /{SITE}/evil.pth"),
    "a sitecustomize": (write(f"{SITE}/sitecustomize.py"), f"file /{SITE}/sitecustomize.py"),
    "a usercustomize of the system": (
        write("usr/lib/python3/dist-packages/usercustomize.py"),
        "file /usr/lib/python3",
    ),
    "a setting of the loader": (write("etc/ld.so.preload"), "file /etc/ld.so.preload"),
    "a file removed": (lambda root: (root / "etc/ld.so.conf").unlink(), "file /etc/ld.so.conf"),
    "a user more": (
        write("etc/passwd", "root:x:0:0::/:/bin/sh\neve:x:0:0::/:/bin/sh\n"),
        "file /etc/passwd",
    ),
    "another base": (write("etc/os-release", "ID=ubuntu\n"), "file /etc/os-release"),
    "the variables of the image": (
        write("opt/harness/image/environment.json", "{}"),
        "file /opt/harness/image/environment.json",
    ),
    "a link to another place": (
        lambda root: (
            (root / "etc/localtime").unlink(),
            (root / "etc/localtime").symlink_to("/usr/share/zoneinfo/Asia/Tokyo"),
        ),
        "file /etc/localtime",
    ),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_listed_root(tmp_path / "root")


@pytest.mark.parametrize(("change", "expected"), PLANTED.values(), ids=PLANTED)
def test_what_was_planted_is_named_first(root: Path, change: Callable[[Path], object], expected: str) -> None:
    before = of_directory(root)
    change(root)
    after = of_directory(root)
    assert differing(summary(before).parts, summary(after).parts)[0].startswith(expected)
    assert told(named(after, before.entries)[0]).startswith(expected)


@pytest.mark.parametrize(("change", "expected"), PLANTED.values(), ids=PLANTED)
def test_verify_names_it_first_and_never_calls_it_equal(
    root: Path, change: Callable[[Path], object], expected: str
) -> None:
    manifest = of_image(summary(of_directory(root)))
    change(root)
    now, notes = examined(root)
    rows = compare_fields(
        manifest, found_as(manifest, image_content=now.content, image_parts=now.parts, image_notes=notes)
    )
    named_first = first_difference(rows)
    assert named_first is not None
    assert named_first.startswith(f"image_content.{expected}")
    assert overall(rows, []) == "differs"
    # The image's own list still says how it was, so the file has a name too.
    row = next(row for row in rows if row.field == named_first)
    assert "/" in row.note


@pytest.mark.parametrize(("change", "expected"), PLANTED.values(), ids=PLANTED)
def test_a_run_in_a_changed_image_does_not_name_the_unchanged_one(
    root: Path, change: Callable[[Path], object], expected: str
) -> None:
    assert claimed(root).content == summary(of_directory(root)).content
    change(root)
    now = claimed(root)
    assert now.content is None
    assert "is not what its list says" in now.unknown["image_content"], expected


def _manifest() -> Manifest:
    made = manifest_of_a_run()
    return made.model_copy(update={"weights": made.weights | {"leaves": {}}, "packages_sha256": "0" * 64})


def of_image(said: Any, **more: Any) -> Manifest:
    known = {"image_content": said.content, "image_parts": said.parts, "image_environment": {}} | more
    return _manifest().model_copy(update=known | {"image": "harness:cpu on debian:12"})


def test_one_image_is_equal(root: Path) -> None:
    manifest = of_image(summary(of_directory(root)))
    rows = {row.field: row for row in compare_fields(manifest, found_as(manifest))}
    assert rows["image_content"].status == rows["image_environment"].status == "equal"


def test_a_package_is_named_by_its_versions(root: Path) -> None:
    before = summary(of_directory(root)).parts["system package libc6"]
    upgraded(root)
    after = summary(of_directory(root)).parts["system package libc6"]
    assert (before.split()[1], after.split()[1]) == ("2.36-9+deb12u14", "2.36-9+deb12u15")
    assert value_of(before).startswith("2.36-9+deb12u14 (")


def test_parts_that_were_made_equal_do_not_make_the_images_equal(root: Path) -> None:
    said = summary(of_directory(root))
    manifest = of_image(said)
    rows = compare_fields(manifest, found_as(manifest, image_content=f"sha256:{'0' * 64}"))
    assert first_difference(rows) == "image_content"


@pytest.mark.parametrize("side", ["recorded", "found"])
def test_without_a_digest_on_one_side_nothing_is_equal(root: Path, side: str) -> None:
    """As with a run of an older harness, or an image that has no list."""
    manifest = of_image(summary(of_directory(root)))
    nothing: dict[str, Any] = {"image_content": None, "image_parts": None, "image_environment": None}
    found = found_as(manifest, **(nothing if side == "found" else {}))
    if side == "recorded":
        manifest = manifest.model_copy(update=nothing)
    rows = compare_fields(manifest, found)
    assert overall(rows, []) == "cannot tell"
    assert {row.field for row in rows if row.status == "cannot tell" and row.matters} >= {
        "image_content",
        "image_environment",
    }


def test_two_old_runs_of_images_cannot_be_told_and_two_without_an_image_are_equal() -> None:
    manifest = _manifest().model_copy(update={"image": "harness:cpu on debian:12"})
    assert overall(compare_fields(manifest, found_as(manifest)), []) == "cannot tell"
    bare = manifest.model_copy(update={"image": None, "image_digest": None, "base_digest": None})
    assert overall(compare_fields(bare, found_as(bare)), []) == "equal"


VARIABLES = {
    "more": ({"LD_PRELOAD": "/x.so"}, {"LD_PRELOAD": "/x.so"}),
    "of no known kind": ({"FOO": "a-key-perhaps"}, {"FOO": "set"}),
    "changed": ({"LANG": "C.UTF-8"}, {"LANG": "C.UTF-8"}),
    "of a container": ({"HF_TOKEN": "x", "WANDB_MODE": "offline", "HOSTNAME": "h", "HTTPS_PROXY": "p"}, {}),
}


@pytest.mark.parametrize(("more", "expected"), VARIABLES.values(), ids=VARIABLES)
def test_variables_are_compared_with_those_of_the_image(
    more: dict[str, str], expected: dict[str, str]
) -> None:
    image = {"PATH": "/bin", "LANG": "C"}
    assert differences(image, image | more) == expected


def test_what_tells_a_process_who_it_is_is_no_difference_between_images() -> None:
    """All that `harness.run.cluster` reads, but for the platform, which decides what is computed."""
    tree = ast.parse(Path(cluster.__file__).read_text())
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    names = {
        text for text in texts if isinstance(text, str) and re.fullmatch(r"[A-Z]+(_[A-Za-z]+)+|RANK", text)
    }
    assert {cluster.COORDINATOR, "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "WORLD_SIZE"} < names
    assert {name for name in names if is_compared(name)} == {"JAX_PLATFORMS"}


def test_a_variable_that_is_missing_is_named() -> None:
    assert differences({"LANG": "C"}, {}) == {"LANG": "not set"}


def test_a_variable_is_named_before_all_that_it_may_change(root: Path) -> None:
    manifest = of_image(summary(of_directory(root)))
    found = found_as(
        manifest, image_environment={"LD_PRELOAD": "/x.so"}, environment={"OMP_NUM_THREADS": "1"}
    )
    assert first_difference(compare_fields(manifest, found)) == "image_environment.LD_PRELOAD"


def test_variables_come_from_the_first_process(tmp_path: Path) -> None:
    (tmp_path / "environ").write_bytes(b"A=1\0B=x=y\0\0odd\0")
    assert of_container(tmp_path / "environ") == {"A": "1", "B": "x=y"}


def test_only_the_first_few_are_told() -> None:
    assert some(["a", "b", "c", "d", "e"]) == "a; b; c; and 2 more"
    assert some([]) == ""


def test_a_tree_without_packages_has_files(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    assert isinstance(tree := of_directory(tmp_path), Tree)
    assert list(summary(tree).parts) == ["file /x"]


def test_no_part_is_taken_for_a_secret_and_redacted(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    for name in ("etc/pam.d/common-password", "var/lib/api_key", "etc/token"):
        write(name)(root)
    write(
        "var/lib/dpkg/status",
        STATUS.replace("libc6", "libsecret").replace("deb12u14", "a-long-version.of.it"),
    )(root)
    said = summary(of_directory(root))
    assert redact_value(said.parts) == said.parts
    assert redact(said.text()) == said.text()


def test_an_argument_of_the_build_is_no_variable_of_an_image() -> None:
    """Each step of a build sees those of its stage, the one that writes down the image's variables too."""
    text = (Path(__file__).parents[1] / "Dockerfile").read_text()
    names = set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
    assert "CUDA13_LOCK_SHA256" in names
    assert {name for name in names if not name.startswith("HARNESS_")} == {
        name for name in names if _OF_A_BUILD.fullmatch(name)
    }
