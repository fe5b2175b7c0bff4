"""Tests the checks of the doctor that ask a server: only where that is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.recipe.load import load_recipe
from tests.support.situations import (
    NO_DATA,
    UNSEEN,
    found,
    situation,
)
from tests.support.step_writer import put_step


def server(status: int) -> Iterator[str]:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    listening = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()


@pytest.mark.parametrize(("status", "expected"), [(200, {}), (404, {"hub": "error"}), (500, {})])
def test_the_hub_is_asked_only_when_that_is_wanted(
    status: int, expected: dict[str, str], tmp_path: Path
) -> None:
    recipe = load_recipe("smoke", ["data.dataset=some/where"])
    for address in server(status):
        case = situation(
            tmp_path, recipe=recipe, environ={"HOME": str(tmp_path), "HF_ENDPOINT": address}, **NO_DATA
        )
        assert found(case._replace(online=True)) == expected | UNSEEN
        assert found(case) == {"hub": "unknown"} | UNSEEN


def test_an_unreachable_bucket_is_an_error_unless_the_weights_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    recipe = load_recipe("smoke", ["weights.source=http://127.0.0.1:9/params"])
    assert found(situation(tmp_path, recipe=recipe, online=True)) == {"weights": "error"}
    assert found(situation(tmp_path, recipe=recipe)) == {"weights": "unknown"}
    # A save that was killed leaves nothing to go on from.
    (tmp_path / "checkpoints" / "10.orbax-checkpoint-tmp-0").mkdir(parents=True)
    assert found(situation(tmp_path, recipe=recipe, online=True)) == {"weights": "error"}
    put_step(tmp_path / "checkpoints", 10)
    assert found(situation(tmp_path, recipe=recipe, online=True)) == {}
