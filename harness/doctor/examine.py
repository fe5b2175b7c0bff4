"""Runs all checks, one after the other, each within its time limit.

A check that fails to check reports so, and hides no other check.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from harness.artifacts.doctor import Diagnosis, Finding
from harness.doctor import content, gpu, host, hosts, network, planned, wandb_key
from harness.doctor.situation import NotNeeded, Situation, error, unknown
from harness.errors import HarnessError
from harness.received.text import word
from harness.run.lock import holder


class Check(NamedTuple):
    """A named check. `run` yields findings about a situation, and nothing if all is well.

    `run` raises NotNeeded if there is nothing to check.
    """

    name: str
    run: Callable[[Situation], Iterable[Finding]]
    limit_s: float = 15


def _one_run_a_directory(situation: Situation) -> Iterator[Finding]:
    """Checks that no living process trains in this run directory."""
    if situation.run is None:
        raise NotNeeded("no --run was named")
    who = holder(situation.run)
    if who is not None:
        yield error(
            "run directory",
            who,
            "one process a run directory",
            "wait for it, or stop it (SIGTERM saves); a run of its own: --name NEW",
        )


CHECKS = (
    Check("XLA flags", gpu.xla_flags, limit_s=70),
    Check("plan", planned.plan),
    Check("driver", gpu.driver),
    Check("compute capability", gpu.capability),
    Check("GPU and JAX", gpu.visible, limit_s=100),
    Check("device memory", gpu.memory),
    Check("WSL2", gpu.wsl),
    Check("host memory", host.memory),
    Check("disk", host.disk),
    Check("/dev/shm", host.shared_memory),
    Check("ulimit", host.limits),
    Check("clock", host.clock),
    Check("writable", host.writable),
    Check("run directory", _one_run_a_directory),
    Check("wandb key", wandb_key.wandb_key),
    Check("hub", network.hub),
    Check("weights", network.bucket),
    Check("weights directory", content.weights),
    Check("trained", content.trained),
    Check("deviation", planned.deviations),
    Check("dataset", content.dataset),
    Check("statistics", content.statistics),
    Check("tokenizer", content.tokenizer),
    Check("interrupted save", content.leftovers),
)

# Of a run of several processes; in one of a single process there is nothing to look at.
HOSTS = (
    Check("software of hosts", hosts.software),
    Check("driver of hosts", hosts.driver),
    Check("devices of hosts", hosts.devices),
    Check("data of hosts", hosts.data),
    Check("clocks of hosts", hosts.clocks),
    Check("proxies of hosts", hosts.proxies),
    Check("network interface", hosts.interface),
    Check("one host", hosts.one_host),
)


def check_names(allowed: Iterable[str], names: Sequence[str]) -> None:
    """Refuses a name in `allowed` that is none of a check's `names`.

    Raises: HarnessError "check-unknown".
    """
    for name in allowed:
        if name not in names:
            spelt = {each.lower(): each for each in names}
            near = difflib.get_close_matches(name.lower(), spelt, n=1)
            raise HarnessError(
                "check-unknown",
                f"there is no check {name!r}",
                got=name,
                need=f"one of {', '.join(names)}",
                fix=f"--allow {word(spelt[near[0]])}"
                if near
                else "harness doctor names the check of each finding",
            )


def check_allowed(allowed: Iterable[str]) -> None:
    """Refuses a name that no check has, before anything is planned or waits.

    Raises: HarnessError "check-unknown".
    """
    check_names(allowed, [check.name for check in (*CHECKS, *HOSTS)])


def examine(
    situation: Situation, *, allow: Iterable[str] = (), checks: Iterable[Check] = CHECKS, inputs: str = ""
) -> Diagnosis:
    """Findings of all checks. Errors of the checks named in `allow` do not stop the run.

    Raises: HarnessError "check-unknown" for a name in `allow` that no check has.
    """
    checks, allowed = (*checks, *(HOSTS if situation.hosts else ())), list(allow)
    check_names(allowed, [check.name for check in checks])
    looked = {check.name: _within(check, situation) for check in checks}
    not_needed = {name: answer for name, answer in looked.items() if isinstance(answer, str)}
    found = {name: answer for name, answer in looked.items() if not isinstance(answer, str)}
    order = {"error": 0, "unknown": 1, "warning": 2}
    # A finding has the name of its check, so that the user can copy the printed name into --allow.
    findings = [
        finding.model_copy(update={"check": name}) for name, several in found.items() for finding in several
    ]
    return Diagnosis(
        inputs=inputs,
        findings=sorted(findings, key=lambda finding: order[finding.severity]),
        passed=[name for name, several in found.items() if not several],
        not_needed=not_needed,
        allowed=allowed,
    )


def _within(check: Check, situation: Situation) -> list[Finding] | str:
    """The findings of one check, or a text that says why the check is not needed.

    A check that failed or ran out of time gives a finding of severity unknown.
    """
    findings: list[Finding] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            findings.extend(check.run(situation))
        except Exception as caught:
            failure.append(caught)

    # A daemon thread: a hung disk or driver must delay neither the other checks nor the end of the process.
    thread = threading.Thread(target=work, daemon=True, name=f"doctor {check.name}")
    thread.start()
    thread.join(check.limit_s)
    if thread.is_alive():
        return [
            unknown(
                check.name,
                f"no answer within {check.limit_s:g} s",
                "an answer",
                "look for a hung disk, driver or network: dmesg | tail",
            )
        ]
    if failure and isinstance(failure[0], NotNeeded):
        return findings or str(failure[0])
    if failure:
        got = f"the check failed: {type(failure[0]).__name__}: {failure[0]}"
        return [
            *findings,
            unknown(check.name, got[:300], "an answer", "harness probe --json shows what is known"),
        ]
    return findings
