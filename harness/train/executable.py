"""Hash of an executable: the program that XLA has optimized."""

from __future__ import annotations

import hashlib
import re


def executable_sha256(text: str) -> str:
    """sha256 of an optimized program's text, without the lines of its source.

    Another machine of the same kind therefore compiles to the same hash.
    """
    body = text.split("\n\n")
    # The tables of file names, functions and stack frames stand before the first computation, one block each.
    kept = [
        block
        for block in body
        if not block.startswith(("FileNames", "FunctionNames", "FileLocations", "StackFrames"))
    ]
    return hashlib.sha256(_ORIGIN.sub("", "\n\n".join(kept)).encode()).hexdigest()


# The source line of an instruction, and XLA's own hash of the program, which includes that line.
_ORIGIN = re.compile(r',? ?metadata=\{(?:[^{}"]|"(?:[^"\\]|\\.)*")*\}|fingerprint_before_lhs="[0-9a-f]*"')
