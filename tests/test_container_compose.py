"""Tests that compose.yaml confines every service.

It gives the GPU to the services that train, passes on the settings that a network needs, and carries no
secret.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
NAMES = (
    "evaluate",
    "evaluate-cpu",
    "fetch",
    "serve",
    "smoke",
    "smoke-openpi",
    "test",
    "train",
    "train-openpi",
)
TRAINERS = ("train", "train-openpi")
ON_GPUS = (*TRAINERS, "serve")
EVALUATORS = ("evaluate", "evaluate-cpu")
# Fetches what is asked for, and has a port or nothing else.
ON_A_BRIDGE = ("fetch", "serve")
SECRETS = ("WANDB_API_KEY", "HF_TOKEN")
OF_SERVE = "HARNESS_API_KEY"
# What a person sets on the host for a mirror, a proxy, a certificate, a wandb of her own.
OF_NETWORKS = (
    *(
        "HF_ENDPOINT",
        "HF_HUB_OFFLINE",
        "HF_HUB_ENABLE_HF_TRANSFER",
        "HARNESS_OFFLINE",
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
    ),
    *(
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
    ),
)


def test_services() -> None:
    assert sorted(SERVICES) == list(NAMES)
    targets = {
        "train": "cuda${HARNESS_CUDA:-}",
        "serve": "cuda${HARNESS_CUDA:-}",
        "smoke": "cpu",
        "fetch": "cpu",
        "test": "test",
        "evaluate": "simulator",
        "evaluate-cpu": "simulator-cpu",
        "train-openpi": "openpi",
        "smoke-openpi": "openpi",
    }
    assert {name: SERVICES[name]["build"]["target"] for name in NAMES} == targets
    recipes = dict.fromkeys(NAMES) | dict.fromkeys(("smoke", "smoke-openpi"), "smoke")
    recipes |= dict.fromkeys(("train", "fetch", "train-openpi"), "pi05_libero")
    assert {name: SERVICES[name].get("environment", {}).get("HARNESS_RECIPE") for name in NAMES} == recipes
    backends = {name: SERVICES[name].get("environment", {}).get("HARNESS_BACKEND") for name in NAMES}
    assert backends == {name: "openpi" if name.endswith("openpi") else None for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service["shm_size"]
    assert service["ulimits"]
    assert service["tmpfs"] == ["/tmp:exec,mode=1777"]
    assert service["pids_limit"] == "${HARNESS_PIDS:-8192}"
    assert service["oom_score_adj"] == 500
    assert service["mem_limit"].startswith("${HARNESS_MEMORY:-")
    assert not {"cap_add", "privileged", "devices", "pid", "ipc", "entrypoint"} & service.keys()
    # Only this machine reaches a port, and only one service has one.
    assert service.get("ports", []) == (["127.0.0.1:${HARNESS_PORT:-8000}:8000"] if name == "serve" else [])


@pytest.mark.parametrize("name", NAMES)
def test_user_is_the_owner_of_the_checkout_or_chosen(name: str) -> None:
    writes_to_the_host = any(mount["target"] == "/runs" for mount in SERVICES[name].get("volumes", []))
    assert writes_to_the_host == (name != "test")
    assert SERVICES[name]["user"] == (
        "${HARNESS_UID:-caller}:${HARNESS_GID:-caller}" if writes_to_the_host else "harness"
    )


@pytest.mark.parametrize("name", ["smoke", "smoke-openpi", "test"])
def test_no_network_where_none_is_needed(name: str) -> None:
    assert SERVICES[name]["network_mode"] == "none"
    assert not set(SECRETS) & SERVICES[name]["environment"].keys()


def test_a_network_is_where_something_is_fetched_and_can_be_taken_away() -> None:
    assert {name for name in NAMES if SERVICES[name]["network_mode"] != "none"} == {
        "fetch",
        *ON_GPUS,
        *EVALUATORS,
    }
    assert {SERVICES[name]["network_mode"] for name in ON_A_BRIDGE} == {"bridge"}
    for name in TRAINERS:
        assert SERVICES[name]["network_mode"] == "${HARNESS_NETWORK:-bridge}"


@pytest.mark.parametrize("name", EVALUATORS)
def test_an_evaluation_has_no_network_unless_one_is_named_for_a_server(name: str) -> None:
    assert SERVICES[name]["network_mode"] == "${HARNESS_NETWORK:-none}"
    assert not set(SECRETS) & SERVICES[name]["environment"].keys()
    assert SERVICES[name]["environment"]["HARNESS_VERB"] == "evaluate"
    assert SERVICES[name]["environment"]["HF_HUB_OFFLINE"] == "1"


def test_an_evaluation_with_and_without_a_gpu_is_passed_the_same() -> None:
    gpu, cpu = (SERVICES[name]["environment"] for name in EVALUATORS)
    assert cpu == gpu | {"HARNESS_SERVICE": "evaluate-cpu"}


@pytest.mark.parametrize("name", ["fetch", *ON_GPUS])
def test_what_the_host_sets_for_a_network_is_passed_on_when_set(name: str) -> None:
    environment = SERVICES[name]["environment"]
    # None, and not "": a variable that is set to nothing is an address without a name to a library.
    assert {variable: environment[variable] for variable in OF_NETWORKS} == dict.fromkeys(OF_NETWORKS)
    trains = {variable for variable in environment if variable.startswith(("NCCL_", "WANDB_"))}
    assert {
        "NCCL_DEBUG",
        "NCCL_P2P_DISABLE",
        "NCCL_IB_DISABLE",
        "NCCL_SOCKET_IFNAME",
        "WANDB_BASE_URL",
    } <= trains or (name in ON_A_BRIDGE and not trains)


def test_whoever_writes_can_be_told_the_umask() -> None:
    assert {name for name in NAMES if "HARNESS_UMASK" in SERVICES[name]["environment"]} == set(NAMES) - {
        "test"
    }


def test_both_trainers_are_passed_the_same() -> None:
    ours, upstream = (SERVICES[name]["environment"] for name in TRAINERS)
    assert upstream == ours | {"HARNESS_SERVICE": "train-openpi", "HARNESS_BACKEND": "openpi"}


def test_no_variable_has_a_value_that_the_host_cannot_change() -> None:
    ours = {"HARNESS_SERVICE", "HARNESS_RECIPE", "HARNESS_BACKEND", "HARNESS_VERB", "HARNESS_SERVE_HOST"}
    for name in ("fetch", *ON_GPUS):
        assert {
            variable for variable, value in SERVICES[name]["environment"].items() if value is not None
        } <= ours


def test_every_variable_is_in_its_table() -> None:
    page = (ROOT / "docs/environment.md").read_text()
    passed = {variable for service in SERVICES.values() for variable in service.get("environment", {})}
    text = (ROOT / "compose.yaml").read_text()
    named = passed | set(re.findall(r"\$\{([A-Z_]+):-", text))
    assert {variable for variable in named if f"`{variable}`" not in page} == set()


def test_keys_come_as_files_too_and_no_file_is_needed() -> None:
    files = {name: secret["file"] for name, secret in COMPOSE["secrets"].items()}
    assert files == {name.lower(): f"${{{name}_FILE:-/dev/null}}" for name in (*SECRETS, OF_SERVE)}
    given = {name: SERVICES[name].get("secrets", []) for name in NAMES}
    assert given == {name: [] for name in NAMES} | {"fetch": ["hf_token"]} | {
        name: ["wandb_api_key", "hf_token"] for name in TRAINERS
    } | {"serve": ["hf_token", "harness_api_key"]} | {name: ["harness_api_key"] for name in EVALUATORS}
    entrypoint = (ROOT / "docker/entrypoint").read_text()
    for name in SECRETS:
        assert f"key {name} /run/secrets/{name.lower()}\n" in entrypoint
    # This one is handed on as a file.
    assert f"export {OF_SERVE}_FILE=/run/secrets/{OF_SERVE.lower()}\n" in entrypoint


def test_a_certificate_is_mounted_where_the_entrypoint_looks() -> None:
    for name in ("fetch", *ON_GPUS):
        (mount,) = [mount for mount in SERVICES[name]["volumes"] if mount["target"] == "/run/harness/ca.pem"]
        assert mount["read_only"] is True
        assert mount["source"] == "${HARNESS_CA_FILE:-${SSL_CERT_FILE:-${REQUESTS_CA_BUNDLE:-/dev/null}}}"
    assert "${HARNESS_CA:-/run/harness/ca.pem}" in (ROOT / "docker/entrypoint").read_text()


def test_only_what_computes_on_gpus_reserves_them() -> None:
    assert {name for name in NAMES if "deploy" in SERVICES[name]} == {*ON_GPUS, "evaluate"}
    for name in ON_GPUS:
        assert SERVICES[name]["deploy"]["resources"]["reservations"]["devices"] == [
            {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
        ]


@pytest.mark.parametrize("service", TRAINERS)
def test_keys_come_from_outside_only(service: str) -> None:
    assert {name: SERVICES[service]["environment"][name] for name in SECRETS} == dict.fromkeys(SECRETS)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "test"])
def test_what_is_written_is_mounted(name: str) -> None:
    mounts = {mount["target"]: mount for mount in SERVICES[name]["volumes"]}
    assert {target for target, mount in mounts.items() if not mount.get("read_only")} == {"/runs", "/cache"}
    for target in ("/runs", "/cache", "/datasets"):
        assert mounts[target]["bind"] == {"create_host_path": False}
        # The directory comes with the clone, so that it belongs to whoever cloned it.
        assert (ROOT / target[1:] / ".gitkeep").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_base_image_is_passed_only_when_set(name: str) -> None:
    assert SERVICES[name]["build"]["args"] == ["BASE_IMAGE", "HARNESS_REVISION", "APT_STRICT", "APT_SNAPSHOT"]
