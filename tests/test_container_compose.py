"""compose.yaml confines every service, gives the GPU to one, and carries no secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
NAMES = ("smoke", "smoke-openpi", "test", "train", "train-openpi")
ON_GPUS = ("train", "train-openpi")
SECRETS = ("WANDB_API_KEY", "HF_TOKEN")


def test_services() -> None:
    assert sorted(SERVICES) == list(NAMES)
    targets = {"train": "cuda", "smoke": "cpu", "test": "test", "train-openpi": "openpi", "smoke-openpi": "openpi"}
    assert {name: SERVICES[name]["build"]["target"] for name in NAMES} == targets
    recipes = {"train": "pi05_libero", "smoke": "smoke", "test": None, "train-openpi": "pi05_libero", "smoke-openpi": "smoke"}
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
    assert not {"cap_add", "privileged", "ports", "devices", "pid", "ipc", "entrypoint"} & service.keys()


@pytest.mark.parametrize("name", NAMES)
def test_user_is_the_owner_of_the_checkout_or_chosen(name: str) -> None:
    writes_to_the_host = any(mount["target"] == "/runs" for mount in SERVICES[name].get("volumes", []))
    assert writes_to_the_host == (name != "test")
    assert SERVICES[name]["user"] == ("${HARNESS_UID:-caller}:${HARNESS_GID:-caller}" if writes_to_the_host else "harness")


@pytest.mark.parametrize("name", ["smoke", "smoke-openpi", "test"])
def test_no_network_where_none_is_needed(name: str) -> None:
    assert SERVICES[name]["network_mode"] == "none"
    assert not set(SECRETS) & SERVICES[name]["environment"].keys()


def test_only_training_reserves_gpus() -> None:
    assert {name for name in NAMES if "deploy" in SERVICES[name]} == set(ON_GPUS)
    for name in ON_GPUS:
        assert SERVICES[name]["deploy"]["resources"]["reservations"]["devices"] == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]


@pytest.mark.parametrize("service", ON_GPUS)
def test_keys_come_from_outside_only(service: str) -> None:
    assert {name: SERVICES[service]["environment"][name] for name in SECRETS} == dict.fromkeys(SECRETS)


@pytest.mark.parametrize("name", ["train", "smoke", "train-openpi", "smoke-openpi"])
def test_what_is_written_is_mounted(name: str) -> None:
    mounts = {mount["target"]: mount for mount in SERVICES[name]["volumes"]}
    assert {target for target, mount in mounts.items() if not mount.get("read_only")} == {"/runs", "/cache"}
    for target in ("/runs", "/cache", "/datasets"):
        assert mounts[target]["bind"] == {"create_host_path": False}
        # The directory comes with the clone, so that it belongs to whoever cloned it.
        assert (ROOT / target[1:] / ".gitkeep").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_base_image_is_passed_only_when_set(name: str) -> None:
    assert SERVICES[name]["build"]["args"] == ["BASE_IMAGE", "HARNESS_REVISION"]
