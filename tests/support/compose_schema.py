"""The fields of a compose file that the harness writes. Each model refuses a field that it does not have.

Source: schema/compose-spec.json of compose-spec/compose-spec.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

from tests.support.engine_schemas import Known


class Bind(Known):
    create_host_path: bool


class BindMount(Known):
    type: Literal["bind"]
    source: str
    target: str
    read_only: bool = False
    bind: Bind


class Device(Known):
    driver: str
    capabilities: list[str]
    count: int | None = None
    device_ids: list[str] | None = None


class Reservations(Known):
    devices: list[Device]


class DeployResources(Known):
    reservations: Reservations


class Deploy(Known):
    resources: DeployResources


class ServiceConfig(Known):
    source: str
    target: str


class ComposeService(Known):
    image: str
    entrypoint: list[str]
    environment: dict[str, str | None]
    volumes: list[BindMount]
    user: str
    init: bool
    read_only: bool
    cap_drop: list[str]
    security_opt: list[str]
    ulimits: dict[str, int]
    tmpfs: list[str]
    shm_size: str
    stop_grace_period: str
    restart: Annotated[str, StringConstraints(pattern=r"^(no|on-failure:\d+)$")]
    configs: list[ServiceConfig] = []
    network_mode: Literal["host"] | None = None
    cpus: int | None = None
    mem_limit: str | None = None
    deploy: Deploy | None = None


class ComposeConfig(Known):
    file: str


class Compose(Known):
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    services: dict[Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9._-]+$")], ComposeService]
    configs: dict[str, ComposeConfig] = {}
