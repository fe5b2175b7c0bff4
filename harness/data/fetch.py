"""The location of a recipe's dataset: in the package, in a directory, or in the hub's cache."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.paths import check_is_dataset, of_file
from harness.data.sample import sample_dataset_path
from harness.errors import HarnessError
from harness.received import consent
from harness.received.consent import Named
from harness.received.names import why_no_relative_name
from harness.received.text import word
from harness.recipe.schema import Data

# Source: huggingface_hub utils/_validators.py `validate_repo_id`, 2.4.0.
_HUB_ID = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/(?=.{1,96}$)[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?", re.ASCII
)
_NAMED = Named("data.dataset of a received recipe", "--set data.dataset=DIR")
# Error numbers of a cache directory that cannot take a file. Network errors have other numbers.
_UNWRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
)
_UNAUTHORIZED = 401
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Resolved:
    """A dataset's directory, its name in the recipe, and its revision.

    `revision` is the hub's commit, even if the recipe names a branch or a tag. It is None if the dataset is
    not from the hub.
    """

    path: Path
    source: str
    revision: str | None


def resolve(data: Data) -> Resolved:
    """The dataset's directory. A hub id (`name/name` or `name/name@revision`) is downloaded first.

    A stopped download is resumed. Downloads are kept under HF_HOME, and read from there if the hub cannot be
    reached. A dataset that the user did not name is only read from the cache, without a request to a server,
    unless the user has consented (`harness.received.consent`).

    Raises: HarnessError "dataset-not-found", "hub-unreachable", "hub-not-found", "hub-login",
    "hub-token", "hub-revision-missing", "revision-needs-hub", "revision-invalid", "not-a-dataset",
    "not-writable", "offline" or "fetch-not-asked".
    """
    path = sample_dataset_path() if data.dataset == "sample" else Path(os.path.expanduser(data.dataset))
    key = data.key
    if data.dataset and os.path.isdir(path):
        if data.revision is not None:
            raise HarnessError(
                "revision-needs-hub",
                f"{key}.revision is set, but {data.dataset} is not on the hub",
                got=data.revision,
                need="null for a directory, or a hub id",
                fix=f"--set {word(f'{key}.revision=null')}",
            )
        # Checked before anything is read or hashed: the path may be a home directory or the whole disk.
        check_is_dataset(path, key)
        return Resolved(path.resolve(), data.dataset, None)
    hub_id, _, revision = data.dataset.partition("@")
    if revision and data.revision not in (None, revision):
        raise HarnessError(
            "revision-twice",
            f"two revisions of {hub_id} are asked for",
            got=f"{key}.dataset={data.dataset} and {key}.revision={data.revision}",
            need="one",
            fix=(
                f"--set {word(f'{key}.revision={revision}')}, or --set {word(f'{key}.dataset={hub_id}')}"
                f" without {word(f'@{revision}')}"
            ),
        )
    if not is_hub_id(hub_id):
        raise HarnessError(
            "dataset-not-found",
            f"there is no dataset {data.dataset!r}",
            got=(
                "a file"
                if os.path.exists(path)
                else "no such directory here, and not of a hub id's form (name/name or name/name@revision)"
            ),
            need=(
                "sample, a directory that exists here (in a container: one that is mounted), or a hub id such"
                " as physical-intelligence/libero"
            ),
            fix=of_file(path, key)
            or f"--set {word(f'{key}.dataset=DIR')}, with its directory or hub id for DIR",
        )
    # A recipe may name the revision in either place, and the fix names the one that is wrong.
    wrong = f"{key}.dataset={hub_id}" if revision else f"{key}.revision=null"
    snapshot = _snapshot(hub_id, _revision(revision or data.revision, wrong), wrong)
    return Resolved(snapshot, hub_id, snapshot.name if _COMMIT.fullmatch(snapshot.name) else None)


def is_hub_id(name: str) -> bool:
    """True if `name` has the form of a hub dataset's name, without a revision."""
    return _HUB_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def _revision(name: str | None, otherwise: str) -> str | None:
    """The revision, checked: the hub's client makes a file name of it.

    `otherwise` is what --set takes for the default branch.
    """
    why = why_no_relative_name(name) if name is not None else None
    if why is not None:
        raise HarnessError(
            "revision-invalid",
            f"the dataset's revision cannot be a branch, a tag or a commit: {why}",
            got=repr(name),
            need="a branch, a tag or a commit of the dataset",
            fix=f"--set {word(otherwise)}, for the default branch",
        )
    return name


def _snapshot(hub_id: str, revision: str | None, otherwise: str) -> Path:
    """The dataset's directory in the hub's cache.

    A dataset that the user named is updated first. Any other is downloaded only if the cache lacks it.
    """
    if consent.granted_by_name(hub_id) and not consent.is_offline():
        return _download(hub_id, revision, otherwise)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, repo_type="dataset", revision=revision, local_files_only=True))
    # The client raises a subclass of OSError if the dataset is not, or not completely, in the cache.
    except OSError:
        consent.check(hub_id, _NAMED)
    consent.announce(hub_id, _NAMED, _bytes_on_hub(hub_id, revision))
    return _download(hub_id, revision, otherwise)


def _bytes_on_hub(hub_id: str, revision: str | None) -> int | None:
    """Size of the dataset in bytes, as the hub lists it; None if the hub does not tell."""
    from huggingface_hub import HfApi

    try:
        files = (
            HfApi().dataset_info(hub_id, revision=revision, files_metadata=True, timeout=30).siblings or []
        )
    # The download meets the same error next, and reports it.
    except Exception:
        return None
    return sum(file.size or 0 for file in files) or None


def _download(hub_id: str, revision: str | None, otherwise: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(hub_id, repo_type="dataset", revision=revision))
    except errors.RevisionNotFoundError as error:
        raise HarnessError(
            "hub-revision-missing",
            f"the hub's dataset {hub_id} has no such revision",
            got=revision,
            need="a branch, a tag or a commit of it",
            fix=f"--set {word(otherwise)}, for the default branch; or name a commit from the history of"
            f" {hub_id} on the hub",
        ) from error
    except errors.GatedRepoError as error:
        raise HarnessError(
            "hub-login",
            f"the hub's dataset {hub_id} needs a login",
            fix="set HF_TOKEN to a token of an account that may read it",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HarnessError(
            "hub-not-found",
            f"the hub has no dataset {hub_id} that this account may read, and there is no such directory",
            got=hub_id,
            fix=(
                "check the spelling of data.dataset; for a private dataset set HF_TOKEN; for a directory,"
                " mount it into the container"
            ),
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled) as error:
        if getattr(getattr(error, "response", None), "status_code", None) == _UNAUTHORIZED:
            raise _token_refused(hub_id) from error
        raise _unreachable(hub_id, revision, error) from error
    except OSError as error:
        if error.errno in _UNWRITABLE:
            raise HarnessError(
                "not-writable",
                f"cannot keep the download of {hub_id}: {error.strerror}",
                got=error.filename or "the download stopped in the middle",
                need="a writable cache with enough space",
                fix="set HF_HOME to a directory with space; what was downloaded is kept and resumed",
            ) from error
        raise _unreachable(hub_id, revision, error) from error
    # The HTTP client's own errors (name resolution, refused, timed out) share no base with the hub's.
    except Exception as error:
        raise _unreachable(hub_id, revision, error) from error


def _token_refused(hub_id: str) -> HarnessError:
    return HarnessError(
        "hub-token",
        f"the hub refuses the token that is sent for {hub_id}: it has expired, or is mistyped",
        got="HTTP 401",
        need="a valid token, or none for a public dataset",
        fix="unset HF_TOKEN and, if there is one, remove the file HF_HOME/token (~/.cache/huggingface/token);"
        " or set HF_TOKEN to a new token",
    )


def _unreachable(hub_id: str, revision: str | None, error: Any) -> HarnessError:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    reason = (
        "HF_HUB_OFFLINE is set"
        if HF_HUB_OFFLINE
        else (str(error).strip().splitlines() or [type(error).__name__])[0].removeprefix("Got: ")[:200]
    )
    again = "unset HF_HUB_OFFLINE" if HF_HUB_OFFLINE else "try again (downloads resume)"
    return HarnessError(
        "hub-unreachable",
        f"there is no directory {hub_id} here, so it is a hub id; the hub cannot be reached, and the cache"
        " does not hold it",
        got=reason,
        need=f"{hub_id} at {revision or 'its default branch'}",
        fix=(
            f"{again}; or name a directory that holds the dataset: --set data.dataset=DIR (in a container:"
            " one that is mounted)"
        ),
    )
