"""Checks that the servers of missing files can be reached.

Contacts no server if nothing is missing, or if the user does not want it.
"""

from __future__ import annotations

from collections.abc import Iterator
from http.client import HTTPException
from urllib.error import HTTPError, URLError

from harness.artifacts.doctor import Finding
from harness.doctor.situation import NotNeeded, Situation, error, unknown
from harness.download.cache import WEIGHTS, check_may_fetch, is_remote, kept_tree
from harness.download.listing import endpoint
from harness.download.web import open_url
from harness.errors import HarnessError
from harness.received.consent import granted
from harness.recipe.schema import Data
from harness.run.directory import RunDir
from harness.run.steps import newest_step

_TIMEOUT_S = 10


def hub(situation: Situation) -> Iterator[Finding]:
    """Checks that the datasets' hub answers, if one of them is not on this machine."""
    away = situation.recipe.data.away()
    if situation.dataset is not None or not away:
        raise NotNeeded("the dataset is on this machine")
    for data in away:
        yield from _on_hub(situation, data)


def _on_hub(situation: Situation, data: Data) -> Iterator[Finding]:
    name = data.dataset
    if situation.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        yield error(
            "hub",
            f"HF_HUB_OFFLINE is set and {name} is not read yet",
            "the dataset on this machine",
            "unset HF_HUB_OFFLINE, or --dataset DIR",
        )
        return
    if not situation.online:
        yield unknown(
            "hub",
            f"whether {name} can be fetched was not asked",
            "an answer of its server",
            "harness doctor --online asks it",
        )
    elif not granted(name.partition("@")[0]):
        yield error(
            "hub",
            f"{name} is named by the run's recipe, and you did not ask for it",
            "your word, or the dataset here",
            "--fetch, or --dataset DIR",
        )
    else:
        endpoint = situation.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        yield from _reach(
            "hub",
            f"{endpoint}/api/datasets/{name.partition('@')[0]}",
            f"{name}@{data.revision or 'main'}",
            "--dataset DIR (a copy)",
        )


def bucket(situation: Situation) -> Iterator[Finding]:
    """Checks that the server of the weights answers, if they are not in the cache."""
    source = situation.recipe.weights.source
    if source is None or not is_remote(source):
        raise NotNeeded("no weights are fetched")
    if kept_tree(source) is not None:
        raise NotNeeded("the weights are in the cache")
    # A run that continues from a checkpoint needs no weights: the checkpoint has them.
    run = situation.run
    if run is not None and newest_step(RunDir(run).checkpoints, situation.backend) is not None:
        raise NotNeeded("the run goes on from its own checkpoint")
    if not situation.online:
        yield unknown(
            "weights",
            f"whether {source} can be fetched was not asked",
            "an answer of its server",
            "harness doctor --online asks it",
        )
        return
    try:
        check_may_fetch(source, WEIGHTS)
    except HarnessError as refusal:
        yield error("weights", refusal.what, refusal.need or "weights on this machine", refusal.fix)
        return
    address = source
    if source.startswith("gs://"):
        name = source.removeprefix("gs://").partition("/")[0]
        address = f"{endpoint(situation.environ)}/storage/v1/b/{name}/o?maxResults=1"
    yield from _reach("weights", address, source, "--set weights.source=DIR (a copy on this machine)")


def _reach(check: str, address: str, what: str, otherwise: str) -> Iterator[Finding]:
    try:
        with open_url(address, timeout_s=_TIMEOUT_S):
            return
    except HarnessError as refusal:
        yield error(
            check,
            refusal.what,
            refusal.need or "an address that may be fetched",
            f"{refusal.fix}; or {otherwise}",
        )
    except HTTPError as failure:
        if failure.code in (401, 403, 404):
            got, fix = (
                f"the server answers {failure.code} for {what}",
                f"check the name; HF_TOKEN for what needs a login; or {otherwise}",
            )
            yield error(check, got, "an address that this account may read", fix)
    except (URLError, HTTPException, OSError) as failure:
        reason = getattr(failure, "reason", failure)
        yield error(
            check,
            f"{what}: {reason}",
            "a network that reaches it, since it must be fetched",
            f"check network and proxy; or {otherwise}",
        )
