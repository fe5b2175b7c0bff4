"""Read by every interpreter that a test starts: it collects as seldom as the tests (tests/conftest.py)."""

import gc

gc.set_threshold(20_000, 20, 20)
