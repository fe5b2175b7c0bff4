"""Paths that a dataset's own metadata names: filled from its templates, and never outside its directory."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from harness.errors import HarnessError

# LeRobot's templates use plain names with a zero-padded width. `str.format` would also take attributes and any width.
_FIELD = re.compile(r"\{(\w+)(?::0?(\d{1,2})d)?\}")


def fill(template: str, values: dict[str, int | str], *, where: str) -> str:
    """`template` with `{name}` and `{name:03d}` replaced.

    Raises: HarnessError "dataset-metadata-invalid" for an unknown field or any other brace.
    """
    rest = _FIELD.sub("", template)
    unknown = [match[1] for match in _FIELD.finditer(template) if match[1] not in values or (match[2] and not isinstance(values[match[1]], int))]
    if unknown or "{" in rest or "}" in rest:
        raise HarnessError(
            "dataset-metadata-invalid",
            f"{where}: the path template {template!r} cannot be filled",
            got=", ".join(unknown) or template,
            need=f"fields {', '.join(sorted(values))}",
            fix=f"correct the template in {where}, or download the dataset again",
        )
    return _FIELD.sub(lambda match: str(values[match[1]]).zfill(int(match[2] or 0)), template)


def inside(root: Path, relative: str) -> Path:
    """`root / relative`, which lies in `root` (the hub cache's links to its own blobs count as inside).

    Raises: HarnessError "dataset-path-unsafe".
    """
    pure = PurePosixPath(relative)
    path = root / pure
    unsafe = "\0" in relative or "\\" in relative or pure.is_absolute() or ".." in pure.parts or not pure.parts
    try:
        unsafe = unsafe or not _stays(root, path)
    except (OSError, RuntimeError, ValueError):
        unsafe = True
    if unsafe:
        raise HarnessError(
            "dataset-path-unsafe",
            f"the dataset {root} names a file outside its own directory",
            got=relative,
            need="a relative path inside the dataset",
            fix="do not use this dataset unless you trust it; if a link inside it is yours, replace it by the files (cp -rL)",
        )
    return path


def _stays(root: Path, path: Path) -> bool:
    target, home = path.resolve(), root.resolve()
    if target.is_relative_to(home):
        return True
    # huggingface_hub keeps <cache>/snapshots/<commit>/file as a link to <cache>/blobs/<hash>.
    return home.parent.name == "snapshots" and target.is_relative_to(home.parent.parent / "blobs")
