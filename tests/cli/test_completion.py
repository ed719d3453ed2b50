"""The shell's completion, in bash."""

import shutil
import subprocess

import pytest

from captioner.cli.completion import flags_of, script
from captioner.cli.main import COMMANDS

FLAGS = {name: flags_of(name) for name in ("caption", "info", "completion")}


def complete(*words: str) -> list[str]:
    """What bash would offer for the last word."""
    code = f"""{script(FLAGS)}
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_captioner
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    command = ["bash", "-c", code, "bash", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_commands_and_flags_are_completed_and_file_names_left_to_the_shell() -> None:
    assert complete("captioner", "in") == ["info"]
    assert complete("captioner", "") == list(FLAGS)
    assert complete("captioner", "caption", "a.jpg", "--over") == [
        "--overlay",
        "--overlay-style",
        "--overwrite",
    ]
    assert complete("captioner", "caption", "exam") == []
    assert complete("captioner", "info", "--overlay") == []


def test_every_command_has_a_help() -> None:
    for name in COMMANDS:
        assert "--help" in flags_of(name), name
