"""The command `captioner completion`.

tyro's own completion knows one command at a time and no file names, so this one is made from the helps.
"""

import contextlib
import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")

_SCRIPT = """\
_captioner() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    elif [[ $word == -* ]]; then
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _captioner captioner
"""


@dataclass(frozen=True)
class CompletionCommand:
    """Print a script that completes commands, flags and file names in bash, and in zsh with bashcompinit."""

    def run(self) -> int:
        from captioner.cli.main import COMMANDS

        sys.stdout.write(script({name: flags_of(name) for name in COMMANDS}))
        return 0


def script(flags: Mapping[str, Sequence[str]]) -> str:
    """The script, from the flags of each command."""
    cases = "\n".join(f'            {name}) words="{" ".join(known)}" ;;' for name, known in flags.items())
    return _SCRIPT.format(commands=" ".join(flags), cases=cases)


def flags_of(command: str) -> list[str]:
    """The flags that a command's help names."""
    from captioner.cli.main import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([command, "--help-all"])
    return sorted({*_FLAG.findall(printed.getvalue())})
