"""Debian's copyright files: the licences that they name, and what the texts behind local names are.

Source: Debian's "Machine-readable debian/copyright file", version 1.0; SPDX's list for the names and texts.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from harness.image.licences import STATED, spelled

# What a licence's text grants, in the words that all its copies share: lower case, blanks and comment marks
# removed. Conditions are part of a pattern, so that one more condition is seen in what is left over.
_BSD = (
    r"redistribution and use in source and binary forms,? with or without modification,? are permitted"
    r"(?: provided that the following conditions are met)?"
)
_SOURCE = r"redistributions? of source code must retain .{0,90}?(?:disclaimer|conditions)"
_BINARY = (
    r"redistributions? in binary form must reproduce .{0,140}?(?:disclaimer|conditions).{0,90}?distribution"
)
_ENDORSE = r"(?:neither )?(?:the names?|my name).{0,240}?(?:endorse|promote).{0,140}?(?:permission|software)"
_ADVERTISE = r"all advertising materials mentioning .{0,300}?acknowledge?ment"
_ALTERED = (
    r"(?:2\. )?the origin of this software must not be misrepresented.{0,260}?"
    r"altered (?:source )?versions must be (?:clearly|plainly) marked as such,? and must not be"
    r" misrepresented as being the original software"
)
_ANYONE = r"permission is granted to anyone to use this software for any purpose"
_HISTORICAL = (
    r"permission to use, copy, modify,?(?: and)? distribute,?(?: and sell)? this software and its"
    r" documentation for any purpose(?: and)?"
    r"(?: is hereby granted without fee| without fee is hereby granted)"
    r"(?:,? provided that .{0,320}?supporting documentation(?:.{0,240}?permission)?)?"
)
_FSF = r"under the terms? of (?:the )?gnu (lesser |library )?(?:general )?public licen[cs]e"
_VERSION = (
    r"(?: as published by the free software foundation)?[;,.]?(?: either| or)?(?: version ([123](?:\.\d)?))?"
)
# The more particular first: what a pattern matched is not offered to those after it.
_TEXTS: tuple[tuple[str, str], ...] = (
    ("bzip2-1.0.6", rf"{_BSD}.{{0,20}}?{_SOURCE}.{{0,20}}?{_ALTERED}.{{0,20}}?{_ENDORSE}"),
    (
        "BSD-4-Clause",
        rf"{_BSD}.{{0,20}}?{_SOURCE}.{{0,20}}?{_BINARY}.{{0,20}}?{_ADVERTISE}.{{0,20}}?{_ENDORSE}",
    ),
    ("BSD-3-Clause", rf"{_BSD}.{{0,20}}?{_SOURCE}.{{0,20}}?{_BINARY}.{{0,20}}?{_ENDORSE}"),
    ("BSD-2-Clause", rf"{_BSD}.{{0,20}}?{_SOURCE}.{{0,20}}?{_BINARY}"),
    (
        "BSD-4.3RENO",
        r"redistribution and use in source and binary forms are permitted provided that the above copyright"
        r" notice and this paragraph are duplicated in all such forms.{0,260}?acknowledge that .{0,120}?"
        r"may not be used to endorse or promote .{0,90}?permission",
    ),
    (
        "BSD-Source-Code",
        r"redistribution and use in source and binary forms are permitted provided that this entire copyright"
        r" notice is duplicated in all such copies",
    ),
    (
        "MIT",
        r"permission is hereby granted,? free of charge, to any person obtaining a copy of .{0,600}?"
        r"(?:the above copyright notice.{0,240}?(?:all copies|software|modified)"
        r"|subject to the following conditions)",
    ),
    (
        "HPND-export-US",
        r"export of this software from the united states.{0,300}?within that constraint, " + _HISTORICAL,
    ),
    ("HPND", _HISTORICAL),
    (
        "ISC",
        r"permission to use, copy, modify,? (?:and|and/or|or) distribute this software for any purpose"
        r" (?:with or|and) without fee is hereby granted"
        r"(?:,? provided that the above copyright notice.{0,80}?all copies)?",
    ),
    ("Spencer-86", rf"{_ANYONE} on any computer system.{{0,300}}?{_ALTERED}"),
    ("Zlib", rf"{_ANYONE},? including commercial.{{0,300}}?{_ALTERED}"),
    (
        "FSFULLR",
        r"gives unlimited permission to copy and/or distribute it,? with or without modifications,?"
        r" as long as this notice is preserved",
    ),
    ("FSFUL", r"gives unlimited permission to copy, distribute and modify it"),
    (
        "FSFAP",
        r"copying and distribution of this file, with or without modification,? are permitted in any medium"
        r" without royalty provided the copyright notice and this notice are preserved",
    ),
    (
        "Latex2e",
        r"permission is granted to make and distribute verbatim copies of this manual.{0,500}?"
        r"permission is granted to copy and distribute modified versions of this manual.{0,260}?"
        r"identical to this one",
    ),
    (
        "TCL",
        r"the authors hereby grant permission to use, copy, modify, distribute, and license this software"
        r".{0,120}?provided that existing copyright notices are retained in all copies.{0,320}?"
        r"authorized uses(?:.{0,260}?where they apply)?",
    ),
    ("Beerware", r"as long as you retain this notice you can do whatever you want with this stuff"),
    ("TTWL", r"this module may be modified, used, copied, and redistributed at your own risk"),
    ("PSF-2.0", r"python software foundation licen[cs]e version 2"),
    ("Artistic-1.0-Perl", r'the "artistic licen[cs]e".{0,60}?preamble'),
    (
        "verbatim-licence",
        r"copy and distribute verbatim copies of this licen[cs]e document, but changing it is not",
    ),
    ("public-domain", r"(?:in(?:to)?|is|are) (?:the )?public[ -]domain|no copyright to licen[cs]e"),
)
# A condition that no pattern above knows: what is left of a text has none of these.
_CONDITION = re.compile(
    r"\b(must|may not|shall not|only (?:if|for|to)|non-?commercial|prohibited|not permitted|not allowed"
    r"|restrict|evil|fee|evaluation|provided that|subject to)\b"
)
# What every licence has, whatever it grants.
_DISCLAIMER = re.compile(
    r"(?:in no event shall|except as contained in this notice|no representations|subject to the following"
    r"|to the extent permitted by law|you must not claim).{0,400}?(?:\.|$)"
)
# What no free licence has, in a text whose other words cannot be taken for conditions.
_UNFREE = re.compile(r"non-?commercial (?:use|purpose)s?|end[ -]user licen[cs]e")
_SAME = re.compile(r"distributed under the same licen[cs]e as the(?: rest of the)? \S+(?: package)?")
_LONGEST_NAME = 100
# The text behind a name; what is longer is compared by its beginning.
_LONGEST_TEXT = 20_000


class Named(NamedTuple):
    """The licences of a system package, as names or SPDX expressions. `why`: the reason when there is none.

    `prose` is True when they were read out of a text that was written for people: it may mean more.
    """

    licences: list[str]
    prose: bool = False
    why: str = ""


def read_copyright(text: str | None) -> Named:
    """The licences that a copyright file names. None for a package without such a file."""
    if text is None:
        return Named([], why="the package has no copyright file in the image")
    if "Format:" in text[:500]:
        found = _of_stanzas(text)
        return Named(found, why="" if found else "the package's copyright file names no licence")
    found = _of_prose(text)
    return Named(
        found, True, "" if found else "the package's copyright file is prose that names no known licence"
    )


def recognized(text: str) -> str | None:
    """The licence that a text is: its SPDX name, or several joined by AND. "": the same as the package's.

    None where the text is of no known licence, or has a condition that this licence has not.
    """
    left = _plain(text[:_LONGEST_TEXT])
    found: list[str] = []
    for name, pattern in _TEXTS:
        after = re.sub(pattern, " … ", left)
        if after != left:
            found.append(name)
        left = after
    for match in re.finditer(_FSF + _VERSION, left):
        found.append(_gnu(match[1], match[2]))
    if not found:
        return "" if _SAME.search(left) else None
    if set(found) & _COPYLEFT or not _CONDITION.search(_DISCLAIMER.sub(" ", left)):
        return " AND ".join(dict.fromkeys(found))
    return None


# The texts of these are long, and full of conditions.
_COPYLEFT = frozenset(
    {f"{name}-{version}" for name in ("GPL", "LGPL") for version in ("1.0", "2.0", "2.1", "3.0")}
    | {"GPL", "LGPL", "Artistic-1.0-Perl"}
)


def _of_stanzas(text: str) -> list[str]:
    """The expressions of the License fields. A name of the package's own is looked up by its text."""
    fields = re.findall(r"^License:[ \t]*(.*)\n?((?:[ \t].*\n?)*)", text, re.MULTILINE)
    texts: dict[str, str] = {}
    for short, body in fields:
        if len(body) > len(texts.get(short.strip().lower(), "")):
            texts[short.strip().lower()] = body
    found = (
        _expression(" ".join(short.split())[:_LONGEST_NAME], texts) if short.strip() else recognized(body)
        for short, body in fields
        if short.strip() or body.strip()
    )
    return list(dict.fromkeys(each for each in found if each))


def _expression(line: str, texts: dict[str, str]) -> str:
    """The SPDX expression of a License field's first line. A comma binds less than "and" and "or"."""
    pieces = re.split(r",\s+(and|or)\s+", line)
    made = _choices(pieces[0], texts)
    for word, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        there = _choices(piece, texts)
        made = f"{_closed(made)} {word.upper()} {_closed(there)}" if made and there else made or there
    return made


def _choices(line: str, texts: dict[str, str]) -> str:
    choices = []
    for choice in re.split(r" or ", line):
        names = [_name(name, texts) for name in re.split(r" and/or | and |, ?", choice) if name.strip()]
        together = " AND ".join(dict.fromkeys(name for name in names if name))
        if together:
            choices.append(together)
    return " OR ".join(dict.fromkeys(choices))


def _closed(expression: str) -> str:
    return f"({expression})" if " OR " in expression or " AND " in expression else expression


def _name(text: str, texts: dict[str, str]) -> str:
    # An exception only allows more.
    short = re.split(r" with ", text.strip())[0]
    name = spelled(short)
    if name in STATED:
        return name
    known = recognized(texts.get(text.strip().lower()) or texts.get(short.lower(), ""))
    return name if known is None else _closed(known)


def _of_prose(text: str) -> list[str]:
    """The licences that a text for people names: by reference, by name and version, or by their own words."""
    plain = _plain(text)
    if _UNFREE.search(plain):
        return []
    named = re.findall(r"/usr/share/common-licenses/([A-Za-z]+(?:-[0-9.]*[0-9])?)", text)
    found = [name for name in map(spelled, named) if name in STATED]
    found += [_gnu(match[1], match[2]) for match in re.finditer(_FSF + _VERSION, plain)]
    found += [
        _gnu(match[1], match[2])
        for match in re.finditer(
            r"gnu (lesser |library )?general public licen[cs]e,? \(?(?:[a-z]+\)?,? )?"
            r"v(?:ersion )?([123](?:\.\d)?)",
            plain,
        )
    ]
    found += [name for name, pattern in _TEXTS if re.search(pattern, plain)]
    names = list(dict.fromkeys(found))
    # "GPL" is the file that leads to the newest version; beside a version it says nothing more.
    return [name for name in names if not any(other.startswith(f"{name}-") for other in names)]


def _gnu(kind: str | None, version: str | None) -> str:
    name = "LGPL" if kind else "GPL"
    return spelled(f"{name}-{version}") if version else name


def _plain(text: str) -> str:
    """The text in one line: no comment marks, no typographic quotes, lower case."""
    lines = (re.sub(r"\A[ \t]*+(?:[*#;/.>|-]++|dnl\b|rem\b)?[ \t]*+", "", line) for line in text.splitlines())
    flat = re.sub(r"\s+", " ", " ".join(lines)).lower()
    return re.sub(r"``|''|[“”]", '"', flat)
