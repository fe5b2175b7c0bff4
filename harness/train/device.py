"""Starts JAX on the device that the environment names, and silences libraries that are not used."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from harness.errors import HarnessError


def start() -> str:
    """The kind of the first device, for example "NVIDIA RTX A6000" or "cpu".

    JAX_PLATFORMS must be set before the call.
    Raises: HarnessError "device-unavailable" if JAX cannot start there. No other device is taken instead.
    """
    # On a machine without a GPU the NVIDIA plugin logs a traceback, and its C++ part writes to fd 2 before
    # logging is set up.
    for name in ("jax._src.xla_bridge", "absl"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with _held_back_stderr() as said:
        try:
            import jax

            return str(jax.devices()[0].device_kind)
        # JAX asserts that there is a backend where its plugin for the one named device finds no driver.
        except (RuntimeError, AssertionError) as error:
            raise HarnessError(
                "device-unavailable",
                f"JAX cannot start on {os.environ.get('JAX_PLATFORMS', 'its device')}:"
                f" {str(error) or 'it has no backend there'}",
                got=(said().strip().splitlines() or ["no further message"])[-1][:300],
                need="a driver and CUDA libraries that match (harness probe shows the driver)",
                fix=(
                    "use the cuda image (docker compose run --rm train), or --device cpu with the smoke"
                    " recipe"
                ),
            ) from error


@contextmanager
def _held_back_stderr() -> Iterator[Callable[[], str]]:
    """Captures what is written to file descriptor 2; yields a function that returns the text."""
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)

        def said() -> str:
            held.seek(0)
            return held.read().decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(original, 2)
            os.close(original)
