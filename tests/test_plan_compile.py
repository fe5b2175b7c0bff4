"""Tests that the right line of a child's stderr explains why its compilation failed."""

from __future__ import annotations

import pytest

from harness.plan.compile import telling


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("ValueError: heads differ\n", "ValueError: heads differ"),
        (
            (
                'Traceback (most recent call last):\n  File "a.py", line 1\nValueError: no\nFatal Python'
                " error: Aborted\n\nCurrent thread 0x7f:\n  File x\n"
            ),
            "ValueError: no",
        ),
        (
            "I0000 00:00:1 cuda.cc:1] no drivers\nF1128 04:41:22 1 parse.cc:234] Check failed\n*** SIGABRT\n",
            "F1128 04:41:22 1 parse.cc:234] Check failed",
        ),
        (
            (
                "jaxlib.XlaRuntimeError: RESOURCE_EXHAUSTED: out of memory\nExtension modules: numpy, jaxlib"
                " (total: 2)\n"
            ),
            "RESOURCE_EXHAUSTED",
        ),
        ("error [data-invalid] a reason of ours\n", "a reason of ours"),
        ("something nobody has seen\n", "something nobody has seen"),
    ],
)
def test_why_a_compilation_ended_is_the_line_that_says_it(said: str, reason: str) -> None:
    assert reason in str(telling(said))


@pytest.mark.parametrize(
    "said", ["", "\n", "I0000 00:00:1 cuda.cc:1] no drivers\n", "Extension modules: numpy\n"]
)
def test_where_nothing_says_why_a_compilation_ended_nothing_is_invented(said: str) -> None:
    assert telling(said) is None
