"""Tests that docs/errors.md agrees with the source.

The reader of the source finds codes however a message is built.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("make_errors", ROOT / "ci" / "make_errors.py")
assert spec is not None
assert spec.loader is not None
make_errors = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_errors)


def test_the_page_is_current() -> None:
    assert (ROOT / "docs" / "errors.md").read_text() == make_errors.page(), "python ci/make_errors.py"


def test_codes_are_seen_however_they_are_written(tmp_path: Path, monkeypatch) -> None:
    source = """
def f(a):
    what = f"no {a} here"
    raise HarnessError("one", what, fix="mend " + f"{a}")

def g(a):
    return HarnessError("two" if a else "three", "x", got=1, fix=f"--set {a}=1")
"""
    (tmp_path / "m.py").write_text(source)
    monkeypatch.setattr(make_errors, "ROOT", tmp_path)
    found = {(each.code, each.what, each.fix) for each in make_errors.raised_in(tmp_path / "m.py")}
    assert found == {("one", "no … here", "mend …"), ("two", "x", "--set …=1"), ("three", "x", "--set …=1")}


def test_every_error_has_a_fix() -> None:
    made = [each for path in sorted((ROOT / "harness").rglob("*.py")) for each in make_errors.raised_in(path)]
    # A code that stands as "…" is handed on: it was named where it was made. These five take their fix from a
    # value that is made elsewhere.
    computed = {"image-missing", "not-a-trainer", "xla-flags-refused", "fetch-not-asked", "peer-lost"}
    assert {each.code for each in made if each.code != "…" and not each.fix.strip(" …")} <= computed
    assert len({each.code for each in made}) > 140
