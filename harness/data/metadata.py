"""A LeRobot dataset's metadata (`meta/`) in versions 2.0, 2.1 and 3.0, as one form.

Source: huggingface/lerobot src/lerobot/datasets (formats v2.1 of release 0.3.3 and v3.0 of release 0.4.4).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.artifacts import Feature
from harness.data.columns import MOST_AXES
from harness.data.episodes import ALL, Selection, chosen
from harness.data.fields import NAME_LETTERS, invalid, number, parsed, text
from harness.data.listings import (
    Row,
    VideoSpan,
    check_version,
    has_episodes,
    read_v2,
    read_v3,
    version_by_files,
    version_wrong,
)
from harness.data.mending import correct
from harness.data.paths import INFO, check_is_dataset, fill, inside, read_file
from harness.errors import HarnessError
from harness.units import MIB

VERSIONS = ("v2.0", "v2.1", "v3.0")
_LATER = re.compile(r"v0*(?:[4-9]|[1-9][0-9])")
_MOST_SHOWN = 40
_INFO_BYTES = 16 * MIB
_MOST_FEATURES, _MOST_SIZE = 10_000, 2**31
_MOST_NAMES = 4096
# Where LeRobot's writers put pictures that lie in files of their own.
_V2_IMAGE = "images/{image_key}/episode_{episode_index:06d}/frame_{frame_index:06d}.png"
_V3_IMAGE = "images/{image_key}/episode-{episode_index:06d}/frame-{frame_index:06d}.png"
# Source: huggingface/datasets src/datasets/features/features.py `Value`.
_SAME_DTYPE = {"double": "float64"}


@dataclass(frozen=True, slots=True)
class Episode:
    """An episode of `length` frames.

    Its first frame is frame `first` of those that are read, and row `row` of `file`. `number` is what the
    column `index` has there; None where that is not known, after a hole in the episodes' numbers.
    """

    index: int
    first: int
    length: int
    file: str
    row: int
    videos: dict[str, VideoSpan]
    number: int | None = None


@dataclass(frozen=True)
class Metadata:
    """The metadata of a dataset. `depth` has the features that they mark as depth.

    `names` has those of a vector's dimensions, where there is one for each.
    `episodes` are those that are read, `listed` all that the metadata list, `empty` those that would be read
    if they had frames. All are in the order of their numbers. `odd` are findings on the metadata.
    `image` is the template of the path of a picture that has a file of its own.
    """

    root: Path
    version: str
    fps: float
    features: dict[str, Feature]
    tasks: dict[int, str]
    episodes: list[Episode]
    depth: frozenset[str] = frozenset()
    names: dict[str, list[str]] = field(default_factory=dict)
    listed: list[Episode] = field(default_factory=list)
    selection: Selection = ALL
    empty: list[Episode] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    image: str = _V2_IMAGE

    @property
    def frames(self) -> int:
        """Number of frames that are read."""
        return self.episodes[-1].first + self.episodes[-1].length


def read_metadata(root: Path, selection: Selection = ALL) -> Metadata:
    """The metadata of the dataset in `root`, checked for consistency.

    `selection` says which episodes are read.

    Raises: HarnessError "not-a-dataset", "dataset-format-unsupported", "dataset-version-wrong",
    "dataset-metadata-invalid", "dataset-rows-mismatch", "dataset-empty", "git-lfs-pointer",
    "episodes-not-there", "episodes-none-left", and those of the files that are read.
    """
    check_is_dataset(root)
    info_path = inside(root, INFO)
    info = parsed(info_path, read_file(root, info_path, _INFO_BYTES))
    by_files = version_by_files(root)
    version = _version(info, info_path, by_files)
    fps = number(info, "fps", info_path)
    features = _features(info, info_path)
    check_version(info_path, version, by_files)
    read = read_v3 if version == "v3.0" else read_v2
    image = _image_template(info, _V3_IMAGE if version == "v3.0" else _V2_IMAGE)
    # A recorder that was stopped before its first episode has written info.json alone.
    empty_yet = info.get("total_episodes") == 0 and not has_episodes(root)
    tasks, rows = ({}, []) if empty_yet else read(root, info, features)
    if not rows:
        raise HarnessError(
            "dataset-empty",
            f"{root} has no episodes",
            got=0,
            need="at least one episode",
            fix="name a dataset that has episodes: --set data.dataset=DIR",
        )
    depth = frozenset(name for name, value in info["features"].items() if _is_depth(value))
    names = {name: _names(value) for name, value in info["features"].items()}
    of_each = {name: each for name, each in names.items() if features[name].shape == [len(each)] and each}
    listed = _listed(root, rows)
    kept = chosen(selection, [episode.index for episode in listed], root)
    # A recording that was stopped at once. Where nothing else is left, that is refused below.
    empty = [episode for episode in listed if episode.index in kept and not episode.length]
    if len(empty) < len(kept):
        kept -= {episode.index for episode in empty}
    episodes = _numbered(root, listed, kept, selection, trusting=version == "v3.0")
    odd = _totals(info, info_path, listed)
    return Metadata(
        root, version, fps, features, tasks, episodes, depth, of_each, listed, selection, empty, odd, image
    )


def _image_template(info: dict[str, Any], usual: str) -> str:
    """The template at `image_path` of info.json, if it is one that can be filled; else the `usual` one.

    LeRobot does not read that key. Other recorders write it, with JPEG in place of PNG.
    """
    said = info.get("image_path")
    if not isinstance(said, str) or len(said) > NAME_LETTERS:
        return usual
    try:
        fill(said, {"image_key": "", "episode_index": 0, "frame_index": 0}, where=INFO)
    except HarnessError:
        return usual
    return said


def _is_depth(feature: dict[str, Any]) -> bool:
    """True if the feature's info marks it as a depth map.

    Source: LeRobot writes `video.is_depth_map` (or `is_depth_map`) into the info of a feature.
    """
    info = feature.get("info") or feature.get("video_info")
    return isinstance(info, dict) and any(
        key.endswith("is_depth_map") and value is True for key, value in info.items()
    )


def _names(feature: dict[str, Any]) -> list[str]:
    """The texts in a feature's `names`: LeRobot has a list, a list in a list, or a mapping of lists.

    Its teleoperators write a mapping of each name to its dimension.
    """
    waiting: list[Any] = [feature.get("names")]
    found: list[str] = []
    while waiting and len(found) <= _MOST_NAMES:
        one = waiting.pop(0)
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, list):
            waiting = one[: _MOST_NAMES + 1] + waiting
        elif isinstance(one, dict) and all(type(value) is int for value in one.values()):
            at = {value: name for name, value in one.items()}
            # Names of which one has no dimension, or another's, name nothing.
            waiting = [at.get(d) for d in range(min(len(one), _MOST_NAMES + 1))] + waiting
        elif isinstance(one, dict):
            waiting = list(one.values())[: _MOST_NAMES + 1] + waiting
    return found


def _listed(root: Path, rows: list[Row]) -> list[Episode]:
    """All listed episodes with their positions in the files and in the numbering of the frames.

    Where somebody took episodes out, their numbers are a hole. The frames after it may have kept their
    numbers or not.
    """
    rows = sorted(rows, key=lambda row: row.index)
    first, next_number, next_row, episodes = 0, 0, dict[str, int](), list[Episode]()
    known = True
    for position, row in enumerate(rows):
        last = rows[position - 1].index if position else -1
        if row.index == last:
            what = f"episode {row.index} is listed twice"
            raise invalid(root / "meta", what, got=row.index, need="each episode once")
        hole = row.index != last + 1
        known = (known and not hole) or row.first is not None
        if row.first is not None and row.first != next_number and not (hole and row.first >= first):
            raise _mismatch(
                root / "meta",
                f"episode {row.index} starts at the wrong frame",
                got=row.first,
                need=next_number,
            )
        number = next_number if row.first is None else row.first
        at = next_row.get(row.file, 0)
        episodes.append(
            Episode(row.index, first, row.length, row.file, at, row.videos, number if known else None)
        )
        next_row[row.file] = at + row.length
        first += row.length
        next_number = number + row.length
    return episodes


def _numbered(
    root: Path, listed: list[Episode], kept: set[int], selection: Selection, *, trusting: bool
) -> list[Episode]:
    """The episodes that are read, with their frames numbered anew from 0.

    Of what is not read the length may be wrong, so the numbers in later rows are known only with `trusting`:
    if the metadata give them for each episode.
    """
    first, episodes, known = 0, list[Episode](), True
    for episode in listed:
        if episode.index not in kept:
            known = trusting
            continue
        if episode.length <= 0:
            # Of all that are kept the last one cannot be left out.
            left = any(other.index in kept and other.length > 0 for other in listed)
            without = f", or {selection.leave_out([episode.index])}" if left else ""
            raise invalid(
                root / "meta",
                f"episode {episode.index} has no frames",
                got=episode.length,
                need="a positive length",
                fix=correct(root / "meta", f"correct its length{without}"),
            )
        number = episode.number if known else None
        episodes.append(
            episode if episode.first == first and known else replace(episode, first=first, number=number)
        )
        first += episode.length
    return episodes


def _mismatch(where: Path, what: str, *, got: object, need: object) -> HarnessError:
    return HarnessError(
        "dataset-rows-mismatch",
        f"{where}: {what}",
        got=got,
        need=need,
        fix=correct(where, "correct the counts in meta/, which disagree"),
    )


def _totals(info: dict[str, Any], path: Path, listed: list[Episode]) -> list[str]:
    """Findings on totals that are not those of the list of episodes.

    Nothing is read by them. Every table is held against its episodes' lengths, so the list counts. Of more
    episodes than are listed some may be lost.

    Raises: HarnessError "dataset-rows-mismatch".
    """
    here = {"total_episodes": len(listed), "total_frames": sum(episode.length for episode in listed)}
    # A null claims nothing.
    other = {key: info[key] for key, n in here.items() if info.get(key) is not None and info[key] != n}
    for key, said in other.items():
        if type(said) is not int or said < 0 or (key == "total_episodes" and said > here[key]):
            raise _mismatch(
                path, f"{key} differs from the list of episodes", got=repr(said)[:100], need=here[key]
            )
    return [
        f"{key} in {INFO} is {said:,}, and the list of episodes has {here[key]:,}: that is what is read"
        for key, said in other.items()
    ]


def _version(info: dict[str, Any], path: Path, by_files: str | None) -> str:
    said = info.get("codebase_version")
    version = (said if said.startswith("v") else f"v{said}") if isinstance(said, str) else None
    # A later format may keep the names of files and change what is in them, so its word counts.
    later = version is not None and _LATER.match(version)
    if version not in VERSIONS and by_files is not None and not later:
        shown = None if version is None else version[:_MOST_SHOWN]
        raise version_wrong(path, shown, by_files, named="codebase_version" in info)
    if version is None:
        raise invalid(path, "no codebase_version", got=said, need=", ".join(VERSIONS))
    if version not in VERSIONS:
        raise HarnessError(
            "dataset-format-unsupported",
            f"{path}: this LeRobot format is not one that the harness reads",
            got=version,
            need=", ".join(VERSIONS),
            fix=(
                "convert the dataset to v3.0 with LeRobot's converter, or pin a revision of it in a supported"
                " format (data.revision)"
            ),
        )
    return version


def _features(info: dict[str, Any], path: Path) -> dict[str, Feature]:
    declared = info.get("features")
    if not isinstance(declared, dict) or not 0 < len(declared) <= _MOST_FEATURES:
        got = f"{len(declared):,}" if isinstance(declared, dict) else type(declared).__name__
        raise invalid(
            path, "no features", got=got, need=f"a mapping of 1 to {_MOST_FEATURES:,} feature names"
        )
    features = {}
    for name, value in declared.items():
        # A feature that is declared without a shape cannot be mapped, and may lie beside those that are.
        shape = (value.get("shape") or []) if isinstance(value, dict) else None
        if (
            not isinstance(shape, list)
            or len(shape) > MOST_AXES
            or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < _MOST_SIZE for n in shape)
            or not isinstance(value.get("dtype"), str)
        ):
            raise invalid(path, f"feature {name[:200]!r} has no dtype and shape", got=value)
        text({"name": name}, "name", path)
        dtype = text(value, "dtype", path)
        features[name] = Feature(dtype=_SAME_DTYPE.get(dtype, dtype), shape=_vector(dtype, shape))
    return features


def _vector(dtype: str, shape: list[int]) -> list[int]:
    """The shape of numbers without the axes of length 1 of a vector in a vector, as [1, 7]; else `shape`."""
    long = [n for n in shape if n != 1]
    if dtype in ("image", "video") or len(shape) < 2 or len(long) > 1:
        return shape
    return long or [1]
