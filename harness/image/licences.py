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
    }
)
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
    (r"gpl", "GPL"),
    (r"lgpl", "LGPL"),
    (r"mit/x11.*|mit-like|x11.*", "X11"),
    (r"bsd-4-clause.*", "BSD-4-Clause"),
    (r"artistic-2", "Artistic-2.0"),
    (r"bsl-1", "BSL-1.0"),
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
    if line in STATED:
        return line
    versioned = re.fullmatch(
        r"(L?GPL|GFDL)(?:-NIV)?[ -]?v?([123](?:\.[0-9])?)(?:\+|-only|-or-later)?", line, re.IGNORECASE
    )
    if versioned:
        number = versioned[2] if "." in versioned[2] else f"{versioned[2]}.0"
        return f"{versioned[1].upper()}-{number}"
    for pattern, name in _SPELLINGS:
        if re.fullmatch(pattern, line, re.IGNORECASE):
            return name
    return line


def unlisted(expressions: list[str]) -> list[str]:
    """The licences among the names and SPDX expressions that are not on the stated list.

    Of "A OR B" one on the list is enough.
    """
    found = []
    for expression in expressions:
        choices = " ".join(expression.replace("(", " ").replace(")", " ").split()).split(" OR ")
        lacking: list[list[str]] = [
            [name for name in re.split(r" (?:AND|WITH) ", choice) if spelled(name) not in STATED]
            for choice in choices
        ]
        if all(lacking):
            found += sorted(lacking, key=len)[0]
    return list(dict.fromkeys(found))


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


def of_debian(copyright_text: str) -> list[str]:
    """The licences of a system package, from its machine-readable copyright file. Empty when it is not one.

    Source: Debian's "Machine-readable debian/copyright file", version 1.0.
    """
    if "Format:" not in copyright_text[:500]:
        return []
    found: dict[str, None] = {}
    for line in re.findall(r"^License:[ \t]*(\S.*)$", copyright_text, re.MULTILINE):
        for name in re.split(r",? (?:and/or|and|or|with) |, ?", " ".join(line.split())):
            if name and "exception" not in name.lower():
                found[spelled(name)] = None
    return list(found)
