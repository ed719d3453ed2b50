"""Options of a training run that do not change its result."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from captioner.bounds import Bounded, NonNegative
from captioner.errors import CaptionerError

COMMAND_FILE = "command.json"
"""In a run's folder: the command that started it, with which `--resume FOLDER` continues."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(Bounded):
    """Folder of a run, and its use of the machine."""

    out: Path
    """Folder of the run, for example runs/first."""
    resume: bool = False
    """Continue the run in OUT from its last save."""
    cache_dir: Path = Path("cache")
    """Folder of the cached features."""
    cache_limit_gb: NonNegative | None = None
    """Largest cache; pictures beyond it are decoded and encoded in every epoch; by default there is no limit,
    and 0 disables the cache."""
    workers: Annotated[int, Meta(ge=0)] | None = None
    """Processes that load pictures; by default one per core, up to 8, and 0 if all features stay cached."""
    save_minutes: NonNegative = 10.0
    """Minutes between saves within an epoch."""


def refuse_other_run(out: Path) -> None:
    """Raises: CaptionerError, if a run was saved in a folder."""
    if (out / "last").exists():
        raise CaptionerError(
            f"{out} contains a run; resume it with: train.py --resume {out}, or choose another --out"
        )
