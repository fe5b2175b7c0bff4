"""A pasted shell line, split into its simple commands and the shell's own parts. Nothing is ever run.

Quotes, escapes, continued lines, comments, redirections, pipes, lists, groups and substitutions are told
apart. Variables stay as they are written.

Source: POSIX Shell Command Language, sections 2.2 to 2.9; the redirections `&>` and `|&` and process
substitution are bash's.
"""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

from harness.errors import HarnessError
from harness.received.text import visible

# A pasted line has some hundred words; a script that launches jobs has some thousand.
LONGEST = 100_000
_TOKEN = re.compile(
    r"""(?P<joined>\\\r?\n|`[ \t]*\r?\n)          # a continued line, of a shell or of PowerShell
      | (?P<blank>[^\S\n]+)
      | (?P<placeholder><[A-Za-z][\w-]{0,60}>(?=\s|\Z))  # documentation's own, such as <config_name>
      | (?P<substitution>[$<>]\(|`)
      | (?P<redirection>&>>?|<<<|<<-?|<>|>>|>\||[<>]&|[<>])
      | (?P<end>\n|&&|\|\||\|&|;;|[;&|()])
      | (?P<single>'[^']*')
      | (?P<double>"(?:[^"\\]|\\.)*")
      | (?P<escape>\\.?)
      | (?P<plain>[^\s\\'"`$<>&|;()]+|\$)""",
    re.VERBOSE | re.DOTALL,
)
# `(base) me@box:~/openpi$ `, `$ `, `>>> `: a terminal's prompt before the line.
_PROMPT = re.compile(
    r"(?:\([\w.-]{1,80}\) {1,3})?(?:[\w.-]{1,80}@[^\s$#%]{1,200}(?: [~/][^\s$#%]{0,200})?)?"
    r" {0,3}(?:[$#%❯➜]|>>>) "
)
_KEYWORDS = {"do", "then", "else", "if", "while", "until", "!", "{", "}", "done", "fi", "time"}


class Simple(NamedTuple):
    """One simple command.

    `before` and `after` are the operators around it; `redirections` and `substitutions` are its own.
    """

    words: list[str]
    before: str
    after: str
    redirections: list[str]
    substitutions: list[str]

    def said(self) -> str:
        """The command with the operator before it.

        Values of variables are left out, since one of them may be a key.
        """
        words = [re.sub(r"^([A-Za-z_]\w*)=.*", r"\1=…", word, flags=re.DOTALL) for word in self.words]
        return " ".join([self.before.replace("\n", ""), *words]).strip()


def as_line(words: list[str]) -> str:
    """The line in `words`: a single word as it is, else the joined words of a shell or of `shlex.split`.

    The shell's own signs stay unquoted. `shlex.split` leaves a line break where a line is continued.
    """
    line = (
        words[0]
        if len(words) == 1
        else " ".join(word if _is_sign(word) else shlex.quote(word) for word in words if not word.isspace())
    )
    # From here on, a terminal's control characters and bytes that are no text stand as escapes.
    return visible(line.replace("\r\n", "\n"))


_SIGN = re.compile(
    r"\d?(?:[<>]{1,3}[&|]?|&>>?)[^\s;|()]*|\|\|?&?|&&?|;{1,2}|\$\([\w./-]*|(?<![\w./=-])[\w./=-]++\)"
)


def _is_sign(word: str) -> bool:
    return _SIGN.fullmatch(word) is not None


def simple_commands(line: str) -> list[Simple]:
    """The simple commands of `line`, in order. Commands without a word are left out.

    Raises: HarnessError "openpi-option-invalid" for quotes or brackets that are not closed, and for a line
    that is too long.
    """
    if len(line) > LONGEST:
        raise _refusal(f"it has {len(line):,} characters", line[:80], f"at most {LONGEST:,}")
    line = line.strip()
    prompt = _PROMPT.match(line)
    reader = _Reader(line[prompt.end() :] if prompt else line)
    reader.read()
    return [command for command in reader.commands if command.words]


class _Reader:
    """The state of reading a line: the position, the current word and command, and the complete commands."""

    def __init__(self, line: str) -> None:
        self.line, self.position = line, 0
        self.commands: list[Simple] = []
        self._word: str | None = None
        self._redirection = ""
        self._start("")

    def read(self) -> None:
        while self.position < len(self.line):
            if self._word is None and self.line[self.position] == "#":
                newline = self.line.find("\n", self.position)
                self.position = len(self.line) if newline < 0 else newline
                continue
            match = _TOKEN.match(self.line, self.position)
            if match is None:
                raise _refusal("a quote is not closed", self.line[self.position :][:80], "closed quotes")
            self.position = match.end()
            self._take(str(match.lastgroup), match[0])
        self._end_word()
        self._end_command("")

    def _take(self, kind: str, text: str) -> None:
        if kind == "substitution":
            inside = text + self._to_close(text)
            self._substitutions.append(inside)
            self._word = (self._word or "") + inside
        elif kind in ("blank", "joined"):
            self._end_word()
        elif kind == "redirection":
            # A number directly before the sign is a descriptor: `2>`, but not `x2>`.
            descriptor = self._word if self._word is not None and self._word.isdigit() else ""
            if descriptor:
                self._word = None
            self._end_word()
            self._redirection = descriptor + text
        elif kind == "end":
            self._end_word()
            self._end_command(text)
        else:
            if kind == "double" and ("$(" in text or "`" in text):
                self._substitutions.append(text[1:-1])
            self._word = (self._word or "") + _plain(kind, text)

    def _to_close(self, opening: str) -> str:
        """The text after `opening`, up to and including the sign that closes it."""
        start, depth = self.position, 1
        closing, wanted = ("`", "`") if opening == "`" else (")", "()")
        while self.position < len(self.line):
            letter = self.line[self.position]
            self.position += 1
            if letter in wanted:
                depth += 1 if letter == "(" else -1
            if depth == 0:
                return self.line[start : self.position]
        raise _refusal(f"{opening} is not closed", self.line[start:][:80], f"its {closing}")

    def _end_word(self) -> None:
        word, self._word = self._word, None
        if word is None:
            return
        if self._redirection:
            joint = "" if self._redirection.endswith("&") else " "
            self._redirections.append(f"{self._redirection}{joint}{word}")
            self._redirection = ""
        elif self._words or word not in _KEYWORDS:
            self._words.append(word)

    def _end_command(self, operator: str) -> None:
        self.commands.append(
            Simple(self._words, self._before, operator, self._redirections, self._substitutions)
        )
        self._start(operator)

    def _start(self, before: str) -> None:
        self._before = before
        self._words: list[str] = []
        self._redirections: list[str] = []
        self._substitutions: list[str] = []


def _plain(kind: str, text: str) -> str:
    """The characters that a quoted or escaped piece of a word stands for."""
    if kind == "single":
        return text[1:-1]
    if kind == "double":
        return re.sub(r'\\([\\"$`])|\\\n', r"\1", text[1:-1])
    return text[1:] if kind == "escape" else text


def _refusal(why: str, got: str, need: str) -> HarnessError:
    return HarnessError(
        "openpi-option-invalid",
        f"the command line cannot be read: {why}",
        got=got,
        need=need,
        fix="correct it",
    )
