"""What an answer's headers say of its bytes: another version, a page for people, a compressed form."""

from __future__ import annotations

import re
from http.client import HTTPResponse
from urllib.parse import urlsplit

from harness.download.listing import LOCAL, RemoteFile
from harness.errors import HarnessError
from harness.received.text import one_line

_TAG = re.compile(r'(?:W/)?"[!#-~]{0,256}"|[A-Z][a-z]{2}, [A-Za-z0-9: ]{20,30}')
# Files that are compressed themselves; some servers call that an encoding.
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".br")


def version_of(response: HTTPResponse) -> str:
    """What tells this version of the file from others: its tag, or the time of its last change; else ""."""
    found = response.headers.get("ETag", "") or response.headers.get("Last-Modified", "")
    return found if _TAG.fullmatch(found) else ""


def check_no_page(file: RemoteFile, response: HTTPResponse) -> None:
    """Refuses a page for people in place of a file that no size and no hash would tell from it.

    Raises: HarnessError "download-page".
    """
    known = file.bytes is not None or file.md5 or file.sha256
    if known or response.headers.get_content_type() != "text/html" or file.path.endswith((".html", ".htm")):
        return
    raise HarnessError(
        "download-page",
        f"{file.url} answers with a page for people and not with the file",
        got="text/html",
        need="the address of the file itself",
        fix=(
            "look at the address in a browser: it may be a login, or a page about the file (of"
            f" huggingface.co take /resolve/ instead of /blob/); or download it by hand and {LOCAL}"
        ),
    )


def check_plain(response: HTTPResponse, url: str) -> None:
    """Refuses an answer that was compressed although that was not asked for: its bytes are not the file's.

    Raises: HarnessError "download-compressed".
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity") or urlsplit(url).path.lower().endswith(_COMPRESSED):
        return
    response.close()
    raise HarnessError(
        "download-compressed",
        f"{one_line(url)} is sent compressed, also to who asks for the plain bytes",
        got=f"Content-Encoding: {one_line(encoding)[:60]}",
        need="the bytes of the file",
        fix=f"download it by hand (curl --compressed), and {LOCAL}",
    )
