"""Tests images by what they hold: planted differences, each named first, and a run replayed in its image.

ci/local test tests/container/test_image.py      after ci/images; minutes: each image is read to its end
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.containers import SMALL, Image, docker
from harness.artifacts import Manifest
from harness.image.contents import SUMMARY, digest
from harness.replay.engine import contents, said
from harness.replay.find import build, read
from harness.replay.replay import Asked, replay
from harness.run.directory import RunDir
from harness.verify.run import verify_pair
from tests.container.engine import CPU_IMAGE, FAST, LABEL, ROOT, Engine

pytestmark = pytest.mark.timeout(1800)

SITE = "/opt/venv/lib/python3*/site-packages"
# Turns the last bit of the file whose name follows.
BYTE = (
    "python3 -c \"import sys; p = sys.argv[1]; b = bytearray(open(p, 'rb').read()); b[-1] ^= 1;"
    " open(p, 'wb').write(b)\""
)
# Whoever made the runs is somebody else, where this process may act for others.
OWNER = 31415 if os.getuid() == 0 else os.getuid()
# Lists an image anew, as an honest build of other contents does.
RELIST = (
    'RUN python -B -c "from pathlib import Path; from harness.image import contents, parts;'
    " tree = contents.of_directory(Path('/'));"
    " Path('/', contents.SUMMARY).write_text(parts.summary(tree).text());"
    " Path('/', contents.LIST).write_text(contents.listing(tree.entries))\""
)
# Prints what an image says of itself after a look, as a run's manifest takes it.
CLAIM = "from harness.image.here import claimed; print(claimed())"


class Planted(NamedTuple):
    """One change of an image: a line of a Dockerfile, and how the field that verify names first begins."""

    line: str
    expected: str


PLANTED = {
    "a Python package's version": Planted(
        f"RUN mv {SITE}/certifi-*.dist-info $(echo {SITE})/certifi-1.0.dist-info"
        f" && sed -i 's/^Version: .*/Version: 1.0/' {SITE}/certifi-1.0.dist-info/METADATA",
        "image_content.Python package certifi",
    ),
    "the version of a package that computes": Planted(
        f"RUN sed -i 's/^Version: .*/Version: 1.0/' {SITE}/optax-*.dist-info/METADATA", "packages.optax"
    ),
    "a byte of a Python package's library": Planted(
        f"RUN {BYTE} $(find {SITE}/pyarrow -name 'libarrow_flight*.so*' | head -n 1)",
        "image_content.Python package pyarrow",
    ),
    "a byte of a system library": Planted(
        f"RUN {BYTE} $(find /usr/lib -name 'libsqlite3.so.*.*' -o -name 'libbz2.so.1.0.*' | head -n 1)",
        "image_content.system package lib",
    ),
    "a system package's version": Planted(
        "RUN sed -i '/^Package: readline-common$/,/^$/s/^Version: .*/Version: 0.1/' /var/lib/dpkg/status",
        "image_content.system package readline-common",
    ),
    "a file of a system package removed": Planted(
        "RUN rm /usr/share/doc/readline-common/copyright", "image_content.system package readline-common"
    ),
    "bytecode of a Python package": Planted(
        f"RUN {BYTE} $(ls {SITE}/certifi/__pycache__/core.*.pyc)", "image_content.Python package certifi"
    ),
    "the mode of a Python package's file": Planted(
        f"RUN chmod 666 {SITE}/certifi/core.py", "image_content.Python package certifi"
    ),
    "the owner of a file": Planted(
        f"RUN chown 1000 {SITE}/certifi/core.py", "image_content.Python package certifi"
    ),
    "a line of our source": Planted(f"RUN echo '# x' >>$(ls {SITE}/harness/units.py)", "source"),
    "the start of a container": Planted(
        "RUN echo '# x' >>/opt/harness/docker/entrypoint", "image_content.our source"
    ),
    "an extra .pth": Planted(
        f"RUN echo 'import os' >$(echo {SITE})/zzz.pth", "image_content.file /opt/venv/lib/python3"
    ),
    "a sitecustomize": Planted(
        f"RUN echo 'x = 1' >$(echo {SITE})/sitecustomize.py", "image_content.file /opt/venv/lib/python3"
    ),
    "a setting of the loader": Planted(
        "RUN echo >/etc/ld.so.preload", "image_content.file /etc/ld.so.preload"
    ),
    "a file removed": Planted("RUN rm /etc/ld.so.cache", "image_content.file /etc/ld.so.cache"),
    "a directory more": Planted("RUN mkdir /opt/extra", "image_content.file /opt/extra"),
    "a link to another place": Planted(
        "RUN ln -sfn /nowhere /opt/venv/lib64", "image_content.file /opt/venv/lib64"
    ),
    "a user more": Planted("RUN echo 'eve:x:0:0::/:/bin/sh' >>/etc/passwd", "image_content.file /etc/passwd"),
    "another base": Planted(
        "RUN echo 'X=1' >>/usr/lib/os-release", "image_content.system package base-files"
    ),
    "a variable that the loader obeys": Planted("ENV LD_BIND_NOW=1", "image_environment.LD_BIND_NOW"),
    "a variable of no known kind": Planted("ENV FOO=bar", "image_environment.FOO"),
    "a variable of the image changed": Planted(
        "ENV PYTHONUNBUFFERED=0", "image_environment.PYTHONUNBUFFERED"
    ),
}


@pytest.fixture(scope="module")
def image(engine: Engine) -> str:
    return engine.image(CPU_IMAGE)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A directory of somebody else's, with places for runs and for the cache."""
    path = Path(os.path.realpath(tempfile.mkdtemp(prefix="harness-tests-")))
    for name in ("runs", "cache"):
        (path / name).mkdir()
        os.chown(path / name, OWNER, OWNER)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture(scope="module")
def run(engine: Engine, image: str, home: Path) -> RunDir:
    """A run of the image, made by somebody else in a place of his own."""
    return trained(engine, image, home, "hers")


def trained(engine: Engine, image: str, home: Path, name: str) -> RunDir:
    """A small run made in an image, by the owner of `home`."""
    started = Image(image, None, labels=[f"{LABEL}={engine.session}"], environment=FAST)
    options = started.options(runs=str(home / "runs"), cache=home / "cache")
    options[options.index("--user") + 1] = f"{OWNER}:{OWNER}"
    docker(
        "run", "--rm", *started.labels, *options, image, "train", *SMALL, "--steps=4", f"--run=/runs/{name}"
    )
    return RunDir(home / "runs" / name)


def derived(engine: Engine, image: str, name: str, *lines: str) -> str:
    """An image that was made from another by the lines of a Dockerfile."""
    tag = f"{engine.session}:{name}"
    text = "\n".join([f"FROM {image}", "USER root", *lines, "USER harness", ""])
    done = subprocess.run(
        ["docker", "build", "--quiet", "--tag", tag, "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return tag


def verified(engine: Engine, image: str, run: RunDir) -> dict[str, Any]:
    """The verdict on the run inside of an image, by its manifest alone."""
    user = run.path.stat()
    ended = engine.run(
        image,
        "/opt/harness/docker/entrypoint",
        *("verify", "/runs/hers", "--steps", "0", "--json"),
        volumes={str(run.path): {"bind": "/runs/hers", "mode": "ro"}},
        environment=FAST,
        user=f"{user.st_uid}:{user.st_gid}",
        network_mode="none",
        read_only=True,
        tmpfs={"/tmp": "exec,mode=1777"},
        init=True,
    )
    assert ended.code in (0, 1), ended.said
    return json.loads(ended.out)


def test_the_image_holds_what_it_says(engine: Engine, image: str) -> None:
    claim = said(engine.client, image)
    assert claim is not None
    assert digest(contents(engine.client, image).entries) == claim.content


def test_the_image_says_so_itself(engine: Engine, image: str) -> None:
    ended = engine.run(image, "/opt/harness/docker/entrypoint", "image", "--check", init=True)
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "as listed"), ended.said


def test_the_bill_of_materials_is_printed(engine: Engine, image: str) -> None:
    ended = engine.run(image, "/opt/harness/docker/entrypoint", "image", "--sbom")
    body = json.loads(ended.out)
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(ended.out) is None
    names = {part["name"] for part in body["components"]}
    assert {"jax", "numpy", "libc6", "harness"} <= names


def test_a_run_names_its_image(engine: Engine, image: str, run: RunDir) -> None:
    manifest = run.read(Manifest)
    claim = said(engine.client, image)
    assert manifest is not None
    assert claim is not None
    assert (manifest.image_content, manifest.image_environment) == (claim.content, {})
    assert manifest.image_parts == claim.parts


@pytest.mark.parametrize("name", PLANTED)
def test_what_was_planted_is_named_first(engine: Engine, image: str, run: RunDir, name: str) -> None:
    planted = PLANTED[name]
    other = derived(engine, image, f"planted-{[*PLANTED].index(name)}", planted.line)
    found = verified(engine, other, run)
    print(f"{name}: {found['first_difference']}")
    assert found["verdict"] == "differs"
    assert found["first_difference"].startswith(planted.expected)


def test_a_run_of_somebody_else_is_equal_in_its_own_image(engine: Engine, image: str, run: RunDir) -> None:
    answer = replay(engine.client, run, Asked(image=image), print)
    assert (answer.verdict, answer.reason) == ("equal", None), answer
    assert answer.computed == answer.content
    assert answer.inside is not None
    assert answer.inside.replay is not None
    assert (answer.inside.replay.steps, answer.inside.replay.largest_difference) == (3, 0.0)


def test_an_image_that_differs_by_one_byte_is_named_and_not_used(
    engine: Engine, image: str, run: RunDir
) -> None:
    other = derived(engine, image, "byte", f"RUN {BYTE} $(ls {SITE}/numpy/_core/_multiarray_umath*.so)")
    answer = replay(engine.client, run, Asked(image=other), print)
    assert answer.verdict == "cannot tell"
    assert answer.inside is None
    assert str(answer.first_difference).startswith("Python package numpy")
    assert "_multiarray_umath" in str(answer.first_difference)


def test_a_forged_label_and_a_forged_summary_are_not_believed(
    engine: Engine, image: str, run: RunDir
) -> None:
    """The image says that it is what the manifest names, and its label too, but it holds something else."""
    manifest = run.read(Manifest)
    assert manifest is not None
    forged = f"LABEL harness.content={manifest.image_content}"
    other = derived(engine, image, "forged", f"RUN {BYTE} /usr/bin/env && touch -r / /{SUMMARY}", forged)
    claim = said(engine.client, other)
    assert claim is not None
    assert claim.content == manifest.image_content
    answer = replay(engine.client, run, Asked(image=other), print)
    assert answer.verdict == "cannot tell"
    assert answer.computed != answer.content
    assert str(answer.first_difference).startswith("system package coreutils")


def test_a_variable_of_the_images_settings_is_named(engine: Engine, image: str, run: RunDir) -> None:
    other = derived(engine, image, "variable", "ENV LD_PRELOAD=/x.so")
    answer = replay(engine.client, run, Asked(image=other), print)
    assert answer.verdict == "cannot tell"
    assert answer.first_difference == "environment variable LD_PRELOAD: '/x.so'"


def test_a_run_made_in_a_changed_image_does_not_pass_for_one_of_the_unchanged(
    engine: Engine, image: str
) -> None:
    """Its manifest then names no image by its contents, and says why."""
    other = derived(engine, image, "changed", f"RUN {BYTE} $(ls {SITE}/optax/__init__.py)")
    ended = engine.run(other, "python", "-c", CLAIM)
    assert "content=None" in ended.out
    assert "optax/__init__.py: changed after the list was made" in ended.out


def test_files_that_were_made_anew_with_the_same_content_raise_no_doubt(engine: Engine, image: str) -> None:
    """As where a build has the list from its cache, and makes what it lists again."""
    other = derived(
        engine, image, "anew", f"RUN touch -c /etc/passwd /usr/bin/env $(ls -d {SITE}/harness/*.py)"
    )
    claim = said(engine.client, image)
    assert claim is not None
    assert f"content='{claim.content}'" in engine.run(other, "python", "-c", CLAIM).out


def test_two_runs_made_in_one_image_are_equal(engine: Engine, image: str, home: Path, run: RunDir) -> None:
    found = verify_pair(run, trained(engine, image, home, "his"))
    assert (found.verdict, found.first_difference) == ("equal", None), found
    assert [row.status for row in found.fields if row.field.startswith("image_content")] == ["equal"]


def test_of_two_runs_whose_images_differ_by_one_byte_the_package_is_named(
    engine: Engine, image: str, home: Path, run: RunDir
) -> None:
    """The other image was listed honestly, so its run names other contents."""
    other = derived(engine, image, "listed", f"RUN {BYTE} $(ls {SITE}/certifi/cacert.pem)", RELIST)
    theirs = trained(engine, other, home, "theirs")
    assert theirs.read(Manifest) is not None
    found = verify_pair(run, theirs)
    assert found.verdict == "differs"
    assert str(found.first_difference).startswith("image_content.Python package certifi"), found


def test_a_run_of_a_commit_is_equal_in_the_image_that_is_built_from_it(engine: Engine, run: RunDir) -> None:
    """No image is looked for: what is built from the commit that the manifest names has to be the one."""
    manifest = run.read(Manifest)
    assert manifest is not None
    there = ["git", "-C", str(ROOT), "cat-file", "-e", f"{str(manifest.source_revision)[:40]}^{{commit}}"]
    if manifest.source_dirty or subprocess.run(there, capture_output=True, check=False).returncode:
        pytest.skip("the image was not built from a commit of this checkout")
    made = build(engine.client, manifest, ROOT, print)
    try:
        found = read(engine.client, made, manifest, print, "built")
        assert (found.unlike, found.computed) == ([], manifest.image_content)
    finally:
        # The name that was given to it here; the image itself may have others.
        engine.client.images.remove(f"harness-replay:cpu-{str(manifest.source_revision)[:12]}")
