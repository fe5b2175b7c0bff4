"""A small root filesystem like that of an image: packages of both kinds, the harness, loose files."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from harness.image.contents import LIST, SUMMARY, listing, of_directory
from harness.image.parts import summary

STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Source: glibc (2.36-9)
Version: 2.36-9+deb12u14

Package: python3.11-minimal
Status: install ok installed
Architecture: amd64
Source: python3.11
Version: 3.11.2-6

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""
COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 1991 somebody
License: LGPL-2.1+ and BSD-3-clause

Files: x/*
License: odd-permissive
"""
SITE = "opt/venv/lib/python3.11/site-packages"
FILES = {
    "etc/os-release": 'ID=debian\nVERSION_ID="12"\n',
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nharness:x:1000:1000::/tmp:/x\ncaller:x:0:0::/tmp:/x\n",
    "etc/group": "root:x:0:\nharness:x:1000:\ncaller:x:0:\n",
    "etc/ld.so.conf": "/usr/lib\n",
    "usr/lib/libc.so.6": "elf",
    "usr/lib/python3.11/os.py": "import sys\n",
    "usr/lib/python3.11/__pycache__/os.cpython-311.pyc": "code",
    "usr/share/doc/libc6/copyright": COPYRIGHT,
    "usr/share/ca/one.crt": "certificate",
    "var/lib/dpkg/status": STATUS,
    "var/lib/dpkg/info/libc6:amd64.list": (
        "/.\n/lib\n/lib/libc.so.6\n/usr/share/doc/libc6/copyright\n/usr/share/ca/one.crt\n"
    ),
    "var/lib/dpkg/info/libc6:amd64.postinst": "#!/bin/sh\n",
    "var/lib/dpkg/info/python3.11-minimal.list": "/usr/lib/python3.11\n/usr/lib/python3.11/os.py\n",
    "opt/harness/revision": f"{'a' * 40}+source.0123456789abcdef\n",
    "opt/harness/docker/entrypoint": "#!/bin/sh\n",
    "opt/harness/image/environment.json": '{"PATH": "/opt/venv/bin", "LANG": "C"}\n',
    f"{SITE}/certifi/__init__.py": "where = 1\n",
    f"{SITE}/certifi/__pycache__/__init__.cpython-311.pyc": "code",
    f"{SITE}/certifi-2026.1.dist-info/METADATA": "Name: certifi\nVersion: 2026.1\nLicense: MPL-2.0\n\nLong",
    f"{SITE}/certifi-2026.1.dist-info/RECORD": "certifi/__init__.py,sha256=x,1\n",
    f"{SITE}/numpy/core.so": "elf of numpy",
    f"{SITE}/numpy-2.1.dist-info/METADATA": "Name: numpy\nVersion: 2.1\nLicense-Expression: BSD-3-Clause\n",
    f"{SITE}/numpy-2.1.dist-info/RECORD": "numpy/core.so,sha256=x,1\n../../../bin/f2py,sha256=x,1\n",
    "opt/venv/bin/f2py": "#!/opt/venv/bin/python\n",
    f"{SITE}/harness/cli.py": "def main(): ...\n",
    f"{SITE}/harness-0.1.0.dist-info/METADATA": "Name: harness\nVersion: 0.1.0\n",
    f"{SITE}/harness-0.1.0.dist-info/RECORD": "harness/cli.py,sha256=x,1\n",
}
LINKS = {
    "lib": "usr/lib",
    "etc/ssl/one.pem": "../../usr/share/ca/one.crt",
    "etc/localtime": "/usr/share/zoneinfo/UTC",
}


def make_root(root: Path) -> Path:
    """Writes the filesystem; modes are 0644 and 0755 whatever the umask is."""
    for path, text in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    for path, target in LINKS.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.name == "entrypoint" else 0o644)
    return root


def make_listed_root(root: Path) -> Path:
    """An image with its list and summary, as a build leaves it."""
    tree = of_directory(make_root(root))
    (root / LIST).write_text(listing(tree.entries))
    (root / SUMMARY).write_text(summary(tree).text())
    return root


def as_tar(root: Path) -> io.BytesIO:
    """The filesystem as an engine exports it, with what an engine adds."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in sorted(root.rglob("*")):
            archive.add(path, str(path.relative_to(root)), recursive=False)
        for name, kind in (
            (".dockerenv", tarfile.REGTYPE),
            ("etc/hosts", tarfile.REGTYPE),
            ("proc", tarfile.DIRTYPE),
        ):
            added = tarfile.TarInfo(name)
            added.type = kind
            archive.addfile(added)
    stream.seek(0)
    return stream
