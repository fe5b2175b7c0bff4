"""Plants keys everywhere a key may stand, trains the small model, and looks for them in every byte that was
written; meanwhile, who listens.

    python -m benchmarks.exposure [--scratch DIR] [--workers 0|1]

Every file of the run, the cache and the home directory, and all output, are searched for each key, plain and
as base64. While it trains, the sockets of all its processes are read from /proc: what listens on a port, and
what on a socket of the file system. Exit code 1 when a key or a listening port is found.
"""

from __future__ import annotations

import argparse
import base64
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KEYS = {
    "WANDB_API_KEY": "a1b2c3d4e5f60718293a4b5c6d7e8f9001122334",
    "HF_TOKEN": "hf_PlantedTokenPlantedTokenPlanted01",
    "NETRC": "netrcpassword0123456789netrcpassword0123",
    "LOGIN": "hub-login-planted-0123456789",
    "HTTPS_PROXY": "proxypassword0123456789",
    "AWS_SECRET_ACCESS_KEY": "planted/aws/secret+0123456789",
}
# Source: Linux, Documentation/networking/proc_net_tcp.rst; the state TCP_LISTEN.
LISTEN = "0A"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--scratch", type=Path, default=None)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--wandb", default="offline", help="WANDB_MODE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        root = Path(scratch)
        environment = planted(root) | {
            "WANDB_MODE": arguments.wandb,
            "HARNESS_LOADER_WORKERS": str(arguments.workers),
        }
        sets = [
            f"--set={key}"
            for key in ("model.image_size=56", "data.augment=false", "train.save_every_steps=3")
        ]
        output, listening = watched(root, ["train", "--steps=6", f"--run={root / 'run'}", *sets], environment)
        for verb in (
            ["verify", str(root / "run"), "--steps=1"],
            ["inspect", str(root / "run"), "--deep"],
            ["report", "--run", str(root / "run")],
        ):
            output += said(verb, environment)
        output += said(["train", f"--set=name={KEYS['HF_TOKEN']}"], environment)
        output += said(["data", "--dataset", f"https://user:{KEYS['HTTPS_PROXY']}@host/x"], environment)
        files = [
            path
            for path in root.rglob("*")
            if path.is_file() and path.parent != root / "home" and path.name != "token"
        ]
        found = [f"{name} in the output" for name, key in KEYS.items() if holds(output, key)]
        found += [
            f"{name} in {path.relative_to(root)}"
            for path in files
            for name, key in KEYS.items()
            if holds(path.read_bytes(), key)
        ]
    print("| what | result |\n| --- | --- |")
    print(
        f"| planted keys | {len(KEYS)}, in {len(files)} files and {len(output):,} bytes of output:"
        f" {'; '.join(found) or 'none found'} |"
    )
    ports = sorted(each for each in listening if each.startswith("port"))
    print(f"| listening ports | {'; '.join(ports) or 'none'} |")
    print(f"| listening sockets of the file system | {'; '.join(sorted(listening - set(ports))) or 'none'} |")
    return 1 if found or ports else 0


def planted(root: Path) -> dict[str, str]:
    """The environment with every key in its place, and a home with logins."""
    home = root / "home"
    (home / ".cache/huggingface").mkdir(parents=True)
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {KEYS['NETRC']}\n")
    (home / ".netrc").chmod(0o600)
    (home / ".cache/huggingface/token").write_text(KEYS["LOGIN"])
    known = {name: KEYS[name] for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY")}
    proxy = {"HTTPS_PROXY": f"http://user:{KEYS['HTTPS_PROXY']}@127.0.0.1:9"}
    return (
        os.environ
        | known
        | proxy
        | {
            "HOME": str(home),
            "HARNESS_CACHE": str(root / "cache"),
            "JAX_PLATFORMS": "cpu",
        }
    )


def said(verb: list[str], environment: dict[str, str]) -> bytes:
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", *verb], env=environment, capture_output=True, check=False
    )
    return done.stdout + done.stderr


def watched(root: Path, verb: list[str], environment: dict[str, str]) -> tuple[bytes, set[str]]:
    """(all output, what listened while it ran)."""
    listening: set[str] = set()
    with (root / "output").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.cli", *verb],
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            listening |= listeners(process.pid)
            time.sleep(0.2)
    output = (root / "output").read_bytes()
    if process.returncode != 0:
        raise SystemExit(
            f"the run ended with {process.returncode}:\n{output.decode(errors='replace')[-3000:]}"
        )
    return output, listening


def listeners(root_pid: int) -> set[str]:
    """What the processes below `root_pid` listen on: "port ADDRESS (program)" or "unix PATH (program)"."""
    found = set()
    for pid in family(root_pid):
        try:
            program = Path(f"/proc/{pid}/comm").read_text().strip()
            held = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
            tables = {
                name: Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
                for name in ("tcp", "tcp6", "unix")
            }
        except OSError:
            continue
        for name in ("tcp", "tcp6"):
            for fields in map(str.split, tables[name]):
                if fields[3] == LISTEN and f"socket:[{fields[9]}]" in held:
                    found.add(f"port {fields[1]} ({program})")
        for fields in map(str.split, tables["unix"]):
            # Of the flags, __SO_ACCEPTCON: unix(7).
            if int(fields[3], 16) & 0x10000 and f"socket:[{fields[6]}]" in held:
                found.add(f"unix {Path(fields[7]).name if len(fields) > 7 else '(no name)'} ({program})")
    return found


def family(pid: int) -> list[int]:
    """`pid` and all that came of it, also what has left its session."""
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return [pid]
    return [pid, *(each for child in children for each in family(child))]


def holds(data: bytes, key: str) -> bool:
    plain = key.encode()
    return any(form in data for form in (plain, base64.b64encode(plain).rstrip(b"="), plain.hex().encode()))


if __name__ == "__main__":
    sys.exit(main())
