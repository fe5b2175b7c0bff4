"""Measures what this machine's card does: `harness calibrate`."""
