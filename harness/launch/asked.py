"""What is asked of an engine: a run, its recipe, the hosts, and what only a person knows of the cluster."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, StringConstraints

from harness.errors import HarnessError
from harness.received.names import Name
from harness.received.text import controls, word
from harness.strict import Strict, parse

Engine = Literal["slurm", "kubernetes", "compose", "ray"]
ENGINES: tuple[Engine, ...] = get_args(Engine)

# The first port above those that Linux gives to outgoing connections (32768 to 60999).
PORT = 61440
# How long a stop may take: what is under way is finished, and a checkpoint is saved. compose.yaml's own.
GRACE_S = 900
RESTARTS = 3
# Who runs in an image that is told nothing (Dockerfile, HARNESS_UID).
IMAGE_USER = (1000, 1000)
# Where an image keeps the start of a container.
START = "/opt/harness/docker/entrypoint"
# The longest name whose hosts, such as NAME-host-0-0, are labels of DNS (RFC 1035: 63 characters).
_LONGEST = 40
_DNS = re.compile(r"[a-z](?:[-a-z0-9]*[a-z0-9])?")
_REGISTRY = r"(?:[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]+)?/)?"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# Source: distribution's reference grammar, docs/content/spec/api.md.
_IMAGE = re.compile(
    rf"\A{_REGISTRY}[a-z0-9]+(?:[._/-]+[a-z0-9]+)*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?"
    r"(?:@sha256:[0-9a-f]{64})?"
)


def _image(text: str) -> str:
    if not (_IMAGE.fullmatch(text) or (text.startswith("/") and not controls(text))):
        raise ValueError("an image is NAME[:TAG][@sha256:…], or for Slurm the path of a .sqsh file")
    return text


def _absolute(text: str) -> str:
    if not text.startswith("/") or controls(text):
        raise ValueError("a path on the hosts is absolute and has no control characters")
    return text


def _of_form(pattern: re.Pattern[str], words: str) -> AfterValidator:
    """Refuses a text that is not of the pattern. `words` say what it has to be."""

    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(f"{text!r} is not {words}")
        return text

    return AfterValidator(check)


# Slurm's own names. Nothing in them means anything to a shell or to YAML.
_Plain = Annotated[
    str,
    _of_form(
        re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,:+@-]{0,200}"), "a name of letters, digits and _ . , : + @ -"
    ),
]
# sbatch(1), --time: minutes, minutes:seconds, hours:minutes:seconds, days-hours, and so on.
_Time = Annotated[
    str,
    _of_form(
        re.compile(r"\d+-\d+(?::\d+){0,2}|\d+(?::\d+){0,2}"),
        "a time as sbatch takes it: MINUTES, H:M:S or DAYS-H:M:S",
    ),
]
# Names of Kubernetes' objects: RFC 1123, a label and a subdomain. A namespace is a label.
_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_NAMED = "a name of Kubernetes: small letters, digits and -"
_Label = Annotated[str, StringConstraints(max_length=63), _of_form(re.compile(_LABEL), _NAMED)]
_Object = Annotated[
    str,
    StringConstraints(max_length=253),
    _of_form(re.compile(rf"{_LABEL}(?:\.{_LABEL})*"), f"{_NAMED}, in parts with ."),
]
_Address = Annotated[
    str,
    _of_form(
        re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?"), "HOST or HOST:PORT, IPv6 in [ ]"
    ),
]
Absolute = Annotated[str, AfterValidator(_absolute)]


class Asked(Strict):
    """All that a file for an engine is made of.

    `name` is the run's. `options` are those of `harness train` beside the run, the recipe and --resume.
    `recipe` is a shipped recipe's name or the absolute path of a file, whose text is `recipe_text`.
    `runs`, `datasets` and `cache` are directories that all hosts see under the same path. `gpus`, `cpus` and
    `memory_gib` are those of one host. `plan` says in words what was planned.
    """

    engine: Engine
    hosts: int = Field(ge=1, le=4096)
    name: Name
    recipe: str
    recipe_text: str | None = None
    options: list[str] = []
    gpus: int = Field(ge=0, le=64)
    plan: str | None = None
    program: list[str] = []
    out: Absolute
    runs: Absolute
    cache: Absolute
    datasets: Absolute
    environment: dict[str, str] = {}
    image: Annotated[str, AfterValidator(_image)] | None = None
    cpus: int | None = Field(default=None, ge=1, le=4096)
    memory_gib: int | None = Field(default=None, ge=1, le=2**16)
    partition: _Plain | None = None
    account: _Plain | None = None
    time: _Time | None = None
    claim: _Object | None = None
    namespace: _Label | None = None
    secret: _Object | None = None
    coordinator: _Address | None = None
    restarts: int = Field(default=RESTARTS, ge=0, le=1000)
    grace_s: int = Field(default=GRACE_S, ge=10, le=65535)
    user: tuple[int, int] = IMAGE_USER

    @property
    def run(self) -> str:
        """The run's directory, where the hosts see it outside of a container."""
        return f"{self.runs.rstrip('/')}/{self.name}"

    @property
    def dns(self) -> str:
        """The run's name as Kubernetes takes it: lower case, no underscore."""
        return re.sub(r"[^a-z0-9-]", "-", self.name.lower()).strip("-")


# Option of the verb → the engines that have a use for it.
ONLY: dict[str, tuple[Engine, ...]] = {
    "image": ("slurm", "kubernetes", "compose"),
    "partition": ("slurm",),
    "account": ("slurm",),
    "time": ("slurm",),
    "claim": ("kubernetes",),
    "namespace": ("kubernetes",),
    "secret": ("kubernetes",),
    "coordinator": ("compose",),
    # `ray job stop` ends a job as soon as its own setting says; no file tells it.
    "grace_s": ("slurm", "kubernetes", "compose"),
}
# Those without which its file could not run.
_NEEDED: dict[Engine, tuple[str, ...]] = {
    "slurm": (),
    "kubernetes": ("image", "claim"),
    "compose": ("image",),
    "ray": (),
}
_EXAMPLE = {
    "image": "registry.example/harness@sha256:DIGEST",
    "claim": "NAME",
}


def validated(data: dict[str, object]) -> Asked:
    """What was asked, once it is known that a file of it can run.

    Raises: HarnessError "launch-invalid", "launch-option", "launch-needs", "launch-name", "launch-digest",
    "launch-time".
    """
    asked = parse(
        Asked,
        data,
        where="what launch was asked",
        code="launch-invalid",
        fix="correct the options named above",
    )
    for option, engines in ONLY.items():
        flag = f"--{option.removesuffix('_s')}"
        given = option in asked.model_fields_set and getattr(asked, option) is not None
        if given and asked.engine not in engines:
            raise HarnessError(
                "launch-option",
                f"{flag} says nothing to {asked.engine}",
                got=f"--engine {asked.engine} {flag}",
                need=f"{flag} with {' or '.join(engines)}",
                fix=f"leave {flag} out",
            )
    for option in _NEEDED[asked.engine]:
        flag = f"--{option}"
        if getattr(asked, option) is None:
            raise HarnessError(
                "launch-needs",
                f"a file for {asked.engine} cannot run without {flag}",
                need=f"{flag} {_EXAMPLE[option]}",
                fix=f"add {flag} {_EXAMPLE[option]}",
            )
    _check_time(asked)
    if asked.engine == "kubernetes":
        _check_kubernetes(asked)
    if asked.image is not None:
        _check_image(asked.engine, asked.image)
    return asked


def _check_time(asked: Asked) -> None:
    """A job is told to stop `grace_s` before its time ends."""
    if asked.time is None or seconds(asked.time) >= 2 * asked.grace_s:
        return
    raise HarnessError(
        "launch-time",
        "most of the time limit would be left for stopping",
        got=f"--time {asked.time} --grace {asked.grace_s}",
        need=f"at least {2 * asked.grace_s} s",
        fix="--time 1-00:00:00, or a smaller --grace",
    )


def seconds(time: str) -> int:
    """The seconds of a time as sbatch takes it: MINUTES, M:S, H:M:S, DAYS-H, D-H:M, D-H:M:S."""
    days, dash, rest = time.rpartition("-")
    parts = [int(each) for each in rest.split(":")]
    # Hours first behind days, and where there are three parts; else minutes.
    units = (3600, 60, 1)[0 if dash or len(parts) == 3 else 1 :]
    return int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False))


def _check_kubernetes(asked: Asked) -> None:
    if not _DNS.fullmatch(asked.dns) or len(asked.dns) > _LONGEST:
        raise HarnessError(
            "launch-name",
            "the run's name makes no name of a host",
            got=asked.dns or asked.name,
            need=f"a name that begins with a letter, of at most {_LONGEST} letters, digits and '-'",
            fix="--name pi05-libero-2",
        )


def _check_image(engine: Engine, image: str) -> None:
    file = image.startswith("/")
    if file and engine != "slurm":
        raise HarnessError(
            "launch-digest",
            f"{engine} takes no file for an image",
            got=image,
            need="NAME@sha256:DIGEST",
            fix="--image registry.example/harness@sha256:DIGEST",
        )
    # All hosts have to run the same image, today and when they are started again. One machine's engine has
    # one image of a name.
    if engine != "compose" and not file and not _DIGEST.search(image):
        raise HarnessError(
            "launch-digest",
            "the image is named by a tag, which may be another image on another host or tomorrow",
            got=image,
            need="NAME@sha256:DIGEST",
            fix=f"docker buildx imagetools inspect {word(image)} says its digest",
        )
