"""Tests that no secret is written or shown: known ones by their value, unknown ones by their form.

Text that is not a secret stays as it is.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import string
import subprocess
import sys
from pathlib import Path
from typing import TextIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.artifacts import Checkpoint, InterruptedSave, LoraReport
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.redact import Cleaned, known_secrets, redact, redact_json, redact_value
from harness.run.directory import RunDir, write_atomic
from harness.supervise.process import Limits, attempt
from harness.verbs.answers import answer
from tests.support.scripted import Listener

SHORT = "0123456789abcdef0123456789abcdef01234567"
LONG = "wandb_v1_" + "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(77))
HUB = "hf_" + "Ab1" * 12
COMMIT = "15a9616f3c1d5ba8e7f1d9d6f0a3c2b1e4d5f6a7"


@pytest.mark.parametrize(
    "name",
    [
        "WANDB_API_KEY",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "GITHUB_TOKEN",
        "DB_PASSWORD",
        "MY_SECRET",
    ],
)
@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=90),
    st.text(max_size=20),
    st.text(max_size=20),
)
def test_a_value_of_the_environment_is_in_no_text(name: str, secret: str, before: str, after: str) -> None:
    environ = {name: "x" + secret}
    cleaned = redact(f"{before}x{secret}{after}", environ)
    assert ("x" + secret not in cleaned) or secret.startswith("/")
    # Nor as it stands in JSON or in an address.
    assert json.dumps("x" + secret) not in redact(json.dumps({"a": "x" + secret}), environ)


def test_the_longest_goes_first_and_short_words_stay() -> None:
    environ = {
        "A_KEY": "abcdefgh",
        "B_TOKEN": "abcdefghijkl",
        "C_KEY": "libero",
        "TOKENIZERS_PARALLELISM": "false-value",
        "PATH_KEY": "/etc/some/file",
    }
    for variable in ("HTTPS_PROXY", "all_proxy", "HF_ENDPOINT", "WANDB_BASE_URL"):
        for address in (
            "http://me:proxy-pass-1@proxy:1",
            "socks5h://me:proxy-pass-1@proxy",
            "me:proxy-pass-1@proxy:3128",
        ):
            assert redact("proxy-pass-1", {variable: address}) == "[redacted]"
            assert "proxy-pass-1" not in redact(f"cannot reach {address}", {variable: address})
    assert (
        redact("abcdefghijkl abcdefgh libero false-value /etc/some/file", environ)
        == "[redacted] [redacted] libero false-value /etc/some/file"
    )


@pytest.mark.parametrize(
    "text",
    [
        "https://me:hunter2secret@host/x",
        "https://hunter2secret@github.com/x.git",
        "http://proxy:hunter2secret@proxy:3128",
        "gs://b/o?X-Goog-Signature=hunter2secret&a=1",
        "https://h/x?token=hunter2secret",
        "Authorization: Bearer hunter2secret0123456789",
        f"401 for {HUB[:-9]}hunter2secret",
        "wandb_v1_hunter2secrethunter2secret",
        "api_key=hunter2secrethunter2secret",
        '{"api_key": "hunter2secrethunter2secret"}',
        "WANDB_API_KEY: hunter2secrethunter2secret",
    ],
)
def test_unknown_secrets_are_known_by_their_form(text: str) -> None:
    cleaned = redact(text, {})
    assert "hunter2secret" not in cleaned
    assert redact(cleaned, {}) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        f"commit {COMMIT}",
        "sha256:5d2e53778e2180e01676aa8bac1aada242e95230ec97e21ecfb33de4e27cd1df",
        "physical-intelligence/libero@main",
        '"prompt_tokens": 200, "longest_prompt_tokens": 33',
        "gs://openpi-assets/checkpoints/pi05_base/params",
        "https://hub.example/datasets/x@0123456789abcdef/y",
        "Step 0: grad_norm=1.5705, loss=0.1146, param_norm=1803.1594",
        "--set train.seed=7; data.tokenizer: paligemma; tokenizer=some/long/path/to/a/tokenizer.model",
        "mail to somebody@example.com",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text, {}) == text


def test_logins_on_disk_are_known(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password 0123secret4567\n")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/token").write_text("plainhubtoken\n")
    environ = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hub")}
    assert known_secrets(environ) == ["0123secret4567", "plainhubtoken"]
    (tmp_path / ".netrc").write_text("not a netrc {\n")
    os.utime(tmp_path / ".netrc", (1, 1))
    assert known_secrets(environ) == ["plainhubtoken"]


def test_files_and_streams_are_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SHORT)
    write_atomic(tmp_path / "a.json", json.dumps({"key": SHORT, "commit": COMMIT}))
    assert json.loads((tmp_path / "a.json").read_text()) == {"key": "[redacted]", "commit": COMMIT}
    out = io.StringIO()
    print(f"a key: {SHORT}", file=cast(TextIO, Cleaned(out)))
    assert out.getvalue() == "a key: [redacted]\n"


_PLANTED = "hunter2secret0123456789"
_ENVIRON = {"MY_TOKEN": "known-" + _PLANTED}
_FRAGMENTS = st.sampled_from(
    [
        f"?key={_PLANTED}",
        f"&token={_PLANTED}\\",
        f"https://me:{_PLANTED}@host/x",
        f"Bearer {_PLANTED}",
        f"api_key={_PLANTED}",
        f"known-{_PLANTED}",
        f'{{"my_token": "{_PLANTED}"}}',
        '"my_token": 0.12345678901234567',
        '?key=a"b',
        '"',
        "\\",
        "'",
        "\n",
        "é",
        "plain",
    ]
)
# A blank keeps a word before a fragment from becoming part of its name or scheme.
_TEXTS = st.one_of(st.lists(_FRAGMENTS, max_size=5).map(" ".join), st.text(max_size=20))
_KEYS = st.one_of(_TEXTS, st.sampled_from(["my_token", "password", "a token"]))
_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        _TEXTS,
        st.just(_PLANTED),
    ).filter(lambda value: value != _PLANTED),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(_KEYS, inner, max_size=4),
        st.just({"my_token": _PLANTED, "other": 1}),
        st.just({"my_token": 0.12345678901234567, "count_token": 7}),
    ),
    max_leaves=12,
)


@given(_VALUES)
def test_json_stays_json_and_holds_no_secret(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, indent=2, ensure_ascii=False)):
        written = redact_json(text, _ENVIRON)
        cleaned = json.loads(written)
        assert _PLANTED not in written
        assert redact_value(cleaned, _ENVIRON) == cleaned
        # The streams of the command line redact the text once more.
        assert json.loads(redact(written, _ENVIRON)) == cleaned
        # Nor does the form for logs break JSON that was not redacted before.
        json.loads(redact(text, _ENVIRON))


def test_values_under_a_key_that_names_a_secret() -> None:
    value = {"my_token": 0.12345678901234567, "a_password": "hunter2secret0123 and more", "token": 7}
    assert redact_value(value, {}) == {"my_token": "[redacted]", "a_password": "[redacted]", "token": 7}
    assert redact('{"my_token": 0.12345678901234567}', {}) == '{"my_token": "[redacted]"}'
    assert redact_json('{"tokens": [1, 2.5e-7], "x": "é"}', {}) == '{"tokens": [1, 2.5e-7], "x": "é"}'


def test_an_artifact_with_a_quote_after_a_key_is_valid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f'pick ?key={_PLANTED}"b'
    save = InterruptedSave(
        path=text, step=None, missing=[], age_s=1.0, bytes=1, safe_to_delete=False, reason=text
    )
    found = Checkpoint(
        path=text,
        layout=None,
        steps=[],
        interrupted=[save],
        lora=LoraReport(present=None),
        parameters={},
        unknown={"my_token": _PLANTED, text: text},
    )
    written = RunDir(tmp_path).write(found).read_text()
    answer(found, True, lambda _: "")
    for said in (written, capsys.readouterr().out):
        assert json.loads(said)["path"] == 'pick ?key=[redacted]"b'
        assert json.loads(said)["unknown"] == {
            "my_token": "[redacted]",
            'pick ?key=[redacted]"b': 'pick ?key=[redacted]"b',
        }
        assert _PLANTED not in said
    assert RunDir(tmp_path).read(Checkpoint) is not None


def test_a_recipe_cannot_hold_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be redacted where it is written, and the run could not be resumed."""
    monkeypatch.setenv("HF_TOKEN", HUB)
    for override in (
        f"name=run-{HUB}",
        f"data.dataset=x/{HUB}",
        "weights.source=https://h/x?X-Amz-Signature=abcdef0123456789",
        "weights.source=https://u:p@h/x",
    ):
        with pytest.raises(HarnessError) as caught:
            load_recipe("smoke", [override])
        assert caught.value.code == "recipe-invalid"
        assert HUB not in str(caught.value)
        assert "abcdef0123456789" not in str(caught.value)


def command(*arguments: str, code: str | None = None, **environment: str) -> str:
    """All that a command writes to stdout and stderr."""
    start = ["-m", "harness.cli", *arguments] if code is None else ["-c", code, *arguments]
    done = subprocess.run(
        [sys.executable, *start], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("key", [SHORT, LONG], ids=["40", "86"])
def test_errors_of_the_command_line_show_no_key(key: str, tmp_path: Path) -> None:
    secret: dict[str, str] = {"WANDB_API_KEY": key, "HOME": str(tmp_path)}
    for arguments in (
        ["verify", f"/nowhere/{key}"],
        ["data", "--dataset", key],
        ["train", key],
        ["train", "--set", f"{key}"],
        ["plan", f"--{key}"],
    ):
        said = command(*arguments, **secret)
        assert key not in said
        assert "redacted" in said or "holds a secret" in said, (arguments, said)
    crash = (
        "import sys, harness.cli as c\ndef app(): raise RuntimeError(f'401 Unauthorized for"
        " {sys.argv[1]}')\nc.app = app\nc.main()"
    )
    said = command(key, code=crash, **secret)
    assert key not in said
    assert "RuntimeError: 401 Unauthorized for [redacted]" in said


def test_last_words_of_a_trainer_show_no_key(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SHORT)
    ended = attempt(
        [sys.executable, "-c", f"raise RuntimeError('refused {SHORT} and {HUB}')"], Listener(), Limits()
    )
    assert ended.last_words[-1] == "RuntimeError: refused [redacted] and [redacted]"
    said = capfd.readouterr().err
    assert SHORT not in said
    assert HUB not in said
