"""Where a recipe's dataset lies on this machine: inside the package, in a directory, or in the hub's cache."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.sample import sample_dataset_path
from harness.errors import HarnessError
from harness.recipe import Data

_HUB_ID = re.compile(r"(?<![\w.-])[A-Za-z0-9][\w.-]*+/[\w.-]++")
# What a cache directory answers when it cannot take a file. The network has other numbers.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Resolved:
    """`revision` is the hub's commit, whatever name it was asked by; None when the dataset is not from the hub."""

    path: Path
    source: str
    revision: str | None


def resolve(data: Data) -> Resolved:
    """The dataset's directory, downloaded first when it is a hub id (`name/name` or `name/name@revision`).

    A download is resumed where it stopped, kept under HF_HOME, and read from there when the hub cannot be reached.

    Raises: HarnessError "dataset-not-found", "hub-unreachable", "hub-not-found", "hub-login", "hub-revision-missing",
    "revision-needs-hub" or "not-writable".
    """
    path = sample_dataset_path() if data.dataset == "sample" else Path(data.dataset).expanduser()
    if data.dataset and path.is_dir():
        if data.revision is not None:
            raise HarnessError(
                "revision-needs-hub",
                f"data.revision is set, but {data.dataset} is not on the hub",
                got=data.revision,
                need="null for a directory, or a hub id",
                fix="--set data.revision=null",
            )
        return Resolved(path.resolve(), data.dataset, None)
    hub_id, _, revision = data.dataset.partition("@")
    if revision and data.revision not in (None, revision):
        raise HarnessError(
            "revision-twice",
            f"two revisions of {hub_id} are asked for",
            got=f"{data.dataset} and data.revision={data.revision}",
            need="one",
            fix=f"--set data.revision={revision}, or --dataset {hub_id} without @{revision}",
        )
    if not _HUB_ID.fullmatch(hub_id):
        raise HarnessError(
            "dataset-not-found",
            f"there is no dataset {data.dataset!r}",
            got="a file" if path.exists() else "no such directory here, and not of a hub id's form (name/name or name/name@revision)",
            need="sample, a directory that exists here (in a container: one that is mounted), or a hub id such as physical-intelligence/libero",
            fix="--dataset DIR, or --set data.dataset=physical-intelligence/libero",
        )
    snapshot = _download(hub_id, revision or data.revision)
    return Resolved(snapshot, hub_id, snapshot.name if _COMMIT.fullmatch(snapshot.name) else None)


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(hub_id, repo_type="dataset", revision=revision))
    except errors.RevisionNotFoundError as error:
        raise HarnessError(
            "hub-revision-missing",
            f"the hub's dataset {hub_id} has no such revision",
            got=revision,
            need="a branch, a tag or a commit of it",
            fix=f"--set data.revision=main, or a commit from the history of {hub_id} on the hub",
        ) from error
    except errors.GatedRepoError as error:
        raise HarnessError("hub-login", f"the hub's dataset {hub_id} needs a login", fix="set HF_TOKEN to a token of an account that may read it") from error
    except errors.RepositoryNotFoundError as error:
        raise HarnessError(
            "hub-not-found",
            f"the hub has no dataset {hub_id} that this account may read, and there is no such directory",
            got=hub_id,
            fix="check the spelling of --dataset; for a private dataset set HF_TOKEN; for a directory, mount it into the container",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled) as error:
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


def _unreachable(hub_id: str, revision: str | None, error: Any) -> HarnessError:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    reason = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else (str(error).strip().splitlines() or [type(error).__name__])[0].removeprefix("Got: ")[:200]
    again = "unset HF_HUB_OFFLINE" if HF_HUB_OFFLINE else "try again (downloads resume)"
    return HarnessError(
        "hub-unreachable",
        f"there is no directory {hub_id} here, so it is a hub id; the hub cannot be reached, and the cache does not hold it",
        got=reason,
        need=f"{hub_id} at {revision or 'its default branch'}",
        fix=f"{again}; or name a directory that holds the dataset: --dataset DIR (in a container: one that is mounted)",
    )
