"""Nothing leaves the machine: a run opens no connection, and stores nothing that we do not say."""

import ctypes
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PICTURES = sorted((ROOT / "examples").glob("*.jpg"))[:2]

STORED = (".cache/matplotlib/", ".config/matplotlib/")
"""What docs/reliability.md says is stored below the home folder."""

_SOCKET = 41  # its number among the system calls of x86-64
_AF_INET, _AF_INET6 = 2, 10
_LOAD, _IS_EQUAL, _RETURN = 0x20, 0x15, 0x06  # instructions of the filter
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER = 22, 38, 2

needs_seccomp = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the filter is for Linux on x86-64"
)


def refuse_connections() -> None:
    """Let the kernel kill this process, or a child, once it opens a socket to a network (seccomp(2))."""
    steps = (
        (_LOAD, 0, 0, 0),  # the call's number
        (_IS_EQUAL, 0, 3, _SOCKET),  # else allow
        (_LOAD, 0, 0, 16),  # its first argument
        (_IS_EQUAL, 2, 0, _AF_INET),
        (_IS_EQUAL, 1, 0, _AF_INET6),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _KILL),
    )
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    header = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program))
    libc = ctypes.CDLL(None)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _FILTER, header, 0, 0):
        raise OSError("the kernel refuses the filter")


def run_guarded(
    home: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run Python under a home folder of its own."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "OMP_NUM_THREADS") if name in os.environ}
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    return subprocess.run(
        command,
        env={**kept, "HOME": str(home), **(environment or {})},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def stored(home: Path) -> list[str]:
    return [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]


@needs_seccomp
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_captioning_opens_no_connection_and_stores_only_what_we_say(backend: str, tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    command = ["caption.py", *map(str, PICTURES), "--overlay", str(out), "--gallery", str(out / "page.html")]
    command += ["--backend", backend]
    done = run_guarded(home, *command)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == len(PICTURES)
    assert [name for name in stored(home) if not name.startswith(STORED)] == []


@needs_seccomp
def test_guard_sees_a_connection(tmp_path: Path) -> None:
    done = run_guarded(tmp_path, "-c", "import socket; socket.socket(socket.AF_INET)")
    assert done.returncode == -31  # SIGSYS
    assert run_guarded(tmp_path, "-c", "import socket; socket.socket(socket.AF_UNIX)").returncode == 0


_AND_WAIT = """
import sys, time
from captioner import Captioner
for backend in ("onnx", "openvino"):
    Captioner.load(backend=backend).caption(sys.argv[1])
time.sleep(75)
"""


@needs_seccomp
@pytest.mark.long
def test_a_long_run_opens_no_connection(tmp_path: Path) -> None:
    """onnxruntime's telemetry, if it is on, looks its host up only after some time."""
    assert run_guarded(tmp_path, "-c", _AND_WAIT, str(PICTURES[0])).returncode == 0
    assert stored(tmp_path) == []


def test_users_may_turn_reports_on(tmp_path: Path) -> None:
    code = "import os, captioner; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for environment, expected in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        assert run_guarded(tmp_path, "-c", code, environment=environment).stdout == f"{expected}\n"


if __name__ == "__main__":
    if sys.platform == "linux" and platform.machine() == "x86_64":
        refuse_connections()
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
