"""The one exception of the harness: what went wrong, what was there, what is needed, and how to mend it."""

from __future__ import annotations


class HarnessError(Exception):
    """A refusal that a person can act on.

    `code` is stable (tests and tools match it); the prose is not. `fix` is a command to type or a key to
    change. The command line prints all five parts and exits with 2.
    """

    def __init__(self, code: str, what: str, *, got: object = None, need: object = None, fix: str) -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.got = None if got is None else str(got)
        self.need = None if need is None else str(need)
        self.fix = fix

    def __str__(self) -> str:
        parts = [f"[{self.code}] {self.what}"]
        parts += [
            f"{name}: {text}"
            for name, text in (("got", self.got), ("need", self.need), ("fix", self.fix))
            if text
        ]
        return "; ".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (loader workers). Exception's own pickling forgets keyword arguments.
        return _rebuild, (self.code, self.what, self.got, self.need, self.fix)


def _rebuild(code: str, what: str, got: str | None, need: str | None, fix: str) -> HarnessError:
    return HarnessError(code, what, got=got, need=need, fix=fix)
