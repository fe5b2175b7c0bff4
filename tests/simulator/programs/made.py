"""What making one environment raises, as a worker would tell it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from harness.errors import HarnessError
from harness.simulate import gl, protocol
from harness.simulate.environment import Environment

gl.choose()
suite, task = json.loads(sys.argv[1])
answer = None
try:
    Environment(suite, task, protocol.check(protocol.shipped("openpi").values), "never")
except HarnessError as error:
    answer = {"code": error.code, "what": error.what, "got": error.got, "fix": error.fix}
Path(sys.argv[2]).write_text(json.dumps(answer))
sys.stdout.flush()
os._exit(0)
