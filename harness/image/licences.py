"""Licences: what packages say of theirs, and which are on the stated list."""

from __future__ import annotations

import re

# Licences under which anyone may use, change and pass on the parts of an image. A licence that is not here is
# no accusation: it is named, so that a person reads it.
STATED = frozenset(
    {
        *("0BSD", "Apache-2.0", "Artistic-1.0-Perl", "Artistic-2.0", "BSD", "BSD-1-Clause", "BSD-2-Clause"),
        *(
            "BSD-3-Clause",
            "BSD-4-Clause",
            "BSL-1.0",
            "bzip2-1.0.6",
            "CC0-1.0",
            "curl",
            "FSFAP",
            "FSFUL",
            "FSFULLR",
        ),
        *(
            "GFDL-1.2",
            "GFDL-1.3",
            "GPL",
            "LGPL",
            "GPL-1.0",
            "GPL-2.0",
            "GPL-3.0",
            "HPND",
            "ICU",
            "ISC",
            "LGPL-2.0",
            "LGPL-2.1",
        ),
        *(
            "LGPL-3.0",
            "libpng-2.0",
            "MIT",
            "MIT-CMU",
            "MPL-1.1",
            "MPL-2.0",
            "OpenSSL",
            "PSF-2.0",
            "Python-2.0",
        ),
        *(
            "public-domain",
            "TCL",
            "Unicode",
            "Unlicense",
            "X11",
            "Zlib",
            "ZPL-2.1",
            "GCC-exception-3.1",
        ),
        *("Unicode-3.0", "Unicode-DFS-2016", "CNRI-Python", "LLVM-exception"),
        *(
            "Beerware",
            "BSD-4.3RENO",
            "BSD-Source-Code",
            "CC-BY-3.0",
            "CC-BY-4.0",
            "CC-BY-SA-3.0",
            "CC-BY-SA-4.0",
        ),
        *("HPND-export-US", "Kazlib", "Latex2e", "MS-PL", "Sleepycat", "SMAIL-GPL", "Spencer-86", "TTWL"),
        *(
            "AFL-2.1",
            "AFL-3.0",
            "Apache-1.1",
            "Bitstream-Vera",
            "EPL-1.0",
            "EPL-2.0",
            "NTP",
            "OFL-1.1",
            "OLDAP-2.8",
        ),
        *("Linux-man-pages-copyleft", "PostgreSQL", "Vim"),
        # How a licence's own text may be passed on; no part of the software is under it.
        "verbatim-licence",
    }
)
_BY_SMALL_LETTERS = {name.lower(): name for name in STATED}
# How packages write them. Texts of many words are cut at the first line.
_SPELLINGS = (
    (r"expat|mit[ -]?(licen[cs]e)?( \(mit\))?|the mit license.*", "MIT"),
    (
        r"(the )?apache( software)?[ -]*(licen[cs]e)?,?[ -]*(version )?v?2(\.0)?"
        r"|apache( software)?( licen[cs]e)?",
        "Apache-2.0",
    ),
    (r"(new |revised |modified )?bsd[ -]*(licen[cs]e)?|bsd license", "BSD"),
    (r"(the )?bsd[ -]*3[ -]?clause.*|3[ -]clause bsd.*|(new|modified) bsd.*", "BSD-3-Clause"),
    (r"(the )?bsd[ -]*2[ -]?clause.*|2[ -]clause bsd.*", "BSD-2-Clause"),
    (r"psf(-2\.0)?|python software foundation.*|psfl", "PSF-2.0"),
    (r"mozilla public license 2\.0.*|mpl[ -]?2(\.0)?", "MPL-2.0"),
    (r"isc( licen[cs]e.*)?", "ISC"),
    (r"apache-2-llvm-exceptions", "Apache-2.0 WITH LLVM-exception"),
    (r"gpl", "GPL"),
    (r"lgpl", "LGPL"),
    (r"mit/x11.*|mit-like|x11.*", "X11"),
    (r"bsd-4-clause.*", "BSD-4-Clause"),
    (r"artistic-2", "Artistic-2.0"),
    (r"beer-?ware", "Beerware"),
    (r"(?:bsl|boost)-1(?:\.0)?", "BSL-1.0"),
    (r"libpng", "libpng-2.0"),
    (r"bsd-([1-4])", r"BSD-\1-Clause"),
    (r"openldap", "OLDAP-2.8"),
    (r"python", "Python-2.0"),
    (r"public[ -]domain.*|pd", "public-domain"),
    (r"unlicense.*|the unlicense.*", "Unlicense"),
    (r"zlib.*", "Zlib"),
    (r"historical permission notice.*|hpnd|pil", "HPND"),
    (r"cc0.*", "CC0-1.0"),
    (r"artistic", "Artistic-1.0-Perl"),
)
_LONGEST = 100


def spelled(text: str) -> str:
    """A licence's name as SPDX writes it, where that is known; else the text's first line."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")[:_LONGEST]
    if line.lower() in _BY_SMALL_LETTERS:
        return _BY_SMALL_LETTERS[line.lower()]
    versioned = re.fullmatch(
        r"(L?GPL|GFDL)(?:-NIV)?[ -]?v?([123](?:\.[0-9])?)"
        r"(?:-no-invariants?)?(?:\+|-only|-or-later)?(?:-no-invariants?)?",
        line,
        re.IGNORECASE,
    )
    if versioned:
        number = versioned[2] if "." in versioned[2] else f"{versioned[2]}.0"
        return f"{versioned[1].upper()}-{number}"
    for pattern, name in _SPELLINGS:
        if found := re.fullmatch(pattern, line, re.IGNORECASE):
            return found.expand(name)
    return line


def unlisted(expressions: list[str]) -> list[str]:
    """The licences among the names and SPDX expressions that are not on the stated list.

    Of "A OR B" one on the list is enough.
    """
    return list(dict.fromkeys(name for expression in expressions for name in _lacking(expression)))


def _lacking(expression: str) -> list[str]:
    """The names of an SPDX expression that are not stated: of a choice, the fewest."""
    if spelled(expression) in STATED:
        return []
    tokens = [part for part in re.split(r"([()]|\bOR\b|\bAND\b|\bWITH\b)", expression) if part.strip()]
    found = _either(tokens)
    # A name may have brackets of its own: "MIT License (MIT)".
    return [expression] if tokens or found is None else found


def _either(tokens: list[str]) -> list[str] | None:
    """What the choice at the head of the tokens lacks; its tokens are taken off. None: there is none."""
    choices = [_both(tokens)]
    while tokens and tokens[0] == "OR":
        tokens.pop(0)
        choices.append(_both(tokens))
    known = [choice for choice in choices if choice is not None]
    return min(known, key=len) if len(known) == len(choices) else None


def _both(tokens: list[str]) -> list[str] | None:
    """As `_either`, of what is joined by AND or WITH."""
    lacking: list[str] = []
    while True:
        if tokens and tokens[0] == "(":
            tokens.pop(0)
            found = _either(tokens)
            if found is None or not tokens or tokens.pop(0) != ")":
                return None
            lacking += found
        elif tokens and tokens[0] not in (")", "OR", "AND", "WITH"):
            name = tokens.pop(0).strip()
            lacking += [] if spelled(name) in STATED else [name]
        else:
            return None
        if not tokens or tokens[0] not in ("AND", "WITH"):
            return lacking
        tokens.pop(0)


def of_python(fields: dict[str, list[str]]) -> list[str]:
    """The licences of a Python package, from the fields of its METADATA. Empty when it names none."""
    if expression := fields.get("license-expression"):
        return [expression[0]]
    classified = [
        spelled(text.rpartition(" :: ")[2])
        for text in fields.get("classifier", [])
        if text.startswith("License :: ") and text.count(" :: ") > 1
    ]
    short = [text for text in fields.get("license", []) if text and text.upper() != "UNKNOWN"]
    known = [name for name in map(spelled, short) if name in STATED]
    if known:
        return known
    if classified:
        return list(dict.fromkeys(classified))
    return [spelled(text) for text in short if len(text) <= _LONGEST]


# The one licence that is known by its own words: its text has no name in some packages' metadata.
_MIT = (
    "permission is hereby granted, free of charge, to any person obtaining a copy of this software and"
    " associated documentation files",
    "the above copyright notice and this permission notice shall be included in all copies or substantial"
    " portions of the software",
)


def of_text(text: str) -> list[str]:
    """["MIT"] if that is the licence that the text is; else empty."""
    words = " ".join(text.lower().split())
    return ["MIT"] if all(part in words for part in _MIT) else []
