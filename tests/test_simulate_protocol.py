"""Tests that protocols are complete, sourced and checked, and are what the published claims state."""

from __future__ import annotations

from typing import Any

import pytest

from harness.errors import HarnessError
from harness.simulate import protocol


def refused(values: dict[str, Any]) -> HarnessError:
    with pytest.raises(HarnessError) as caught:
        protocol.check(values)
    assert caught.value.code == "protocol-invalid"
    assert caught.value.need
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("name", protocol.names())
def test_every_value_of_a_shipped_protocol_has_a_source(name: str) -> None:
    found = protocol.shipped(name)
    assert found.name == name
    assert found.version >= 1
    assert {key.partition(".")[0] if key.startswith("max_steps") else key for key in found.values} | {
        "",
        "versions",
    } == set(found.sources)
    assert all(found.sources.values())


def test_openpis_protocol_is_openpis() -> None:
    values = protocol.check(protocol.shipped("openpi").values)
    assert (values.seed, values.wait_steps, values.replan_steps, values.episodes) == (7, 10, 5, 50)
    assert (values.resolution, values.resize, values.turn) == (256, 224, 180)
    assert values.max_steps == {
        "libero_spatial": 220,
        "libero_object": 280,
        "libero_goal": 300,
        "libero_10": 520,
        "libero_90": 400,
    }
    assert values.dummy_action == (0, 0, 0, 0, 0, 0, -1)
    assert protocol.shipped("openpi").versions == {"mujoco": "3.2.3", "robosuite": "1.4.1"}


def test_lerobots_protocol_differs_from_openpis_where_lerobot_does() -> None:
    ours, theirs = (protocol.shipped(name).values for name in ("openpi", "lerobot"))
    assert ours.keys() == theirs.keys()
    assert {key for key in ours if ours[key] != theirs[key]} == {
        "seed",
        "scenes",
        "episodes",
        "replan_steps",
        "resolution",
        "resize_method",
        "state",
        "max_steps.libero_spatial",
    }


def test_an_unknown_protocol_is_named_with_the_nearest() -> None:
    with pytest.raises(HarnessError) as caught:
        protocol.shipped("openpie")
    assert caught.value.code == "protocol-unknown"
    assert "openpi" in caught.value.fix
    with pytest.raises(HarnessError):
        protocol.shipped("../protocols/openpi")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", True),
        ("seed", 7.0),
        ("seed", "7"),
        ("wait_steps", 1001),
        ("wait_steps", 800),
        ("replan_steps", 0),
        ("resolution", 4096),
        ("turn", 90),
        ("turn", True),
        ("camera.image", "frontview_image"),
        ("dummy_action", "0 0 0"),
        ("dummy_action", "0 0 0 0 0 0 nan"),
        ("dummy_action", [0, 0, 0, 0, 0, 0, -1]),
        ("scenes", "random"),
        ("success", "during waiting"),
        ("max_steps.libero_10", 991),
        ("max_steps.libero_10", None),
    ],
)
def test_a_value_that_cannot_be_driven_with_is_named(key: str, value: Any) -> None:
    error = refused({**protocol.shipped("openpi").values, key: value})
    assert key in error.what or key == "wait_steps"


def test_a_missing_and_an_unknown_key_are_named() -> None:
    values = protocol.shipped("openpi").values
    assert "seed" in refused({key: values[key] for key in values if key != "seed"}).what
    assert "replan_steps" in refused({**values, "replan_step": 5}).fix
