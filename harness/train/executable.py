"""The identity of what XLA has made of a program."""

from __future__ import annotations

import hashlib
import re


def executable_fingerprint(text: str) -> str:
    """sha256 of an optimized program's text, less what tells where its source lies: another machine of the
    same kind compiles the same.
    """
    body = text.split("\n\n")
    # The tables of file names, functions and stack frames stand before the first computation, each a block of
    # its own.
    kept = [
        block
        for block in body
        if not block.startswith(("FileNames", "FunctionNames", "FileLocations", "StackFrames"))
    ]
    return hashlib.sha256(_ORIGIN.sub("", "\n\n".join(kept)).encode()).hexdigest()


# Where an instruction was written, and XLA's own hash of the program with that in it.
_ORIGIN = re.compile(r',? ?metadata=\{(?:[^{}"]|"(?:[^"\\]|\\.)*")*\}|fingerprint_before_lhs="[0-9a-f]*"')
