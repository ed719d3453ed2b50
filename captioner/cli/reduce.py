"""The command `captioner reduce`."""

import logging
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from captioner.cli.evaluate import BROKEN, Dataset
from captioner.cli.options import arg, flags, model_folder, report_broken_plugins
from captioner.config import ModelOptions
from captioner.errors import CaptionerError, UsageError
from captioner.inference import Captioner

HardwareFlags: Any = flags(ModelOptions, ("threads",))


@dataclass(frozen=True, kw_only=True)
class ReduceCommand:
    """Make a model faster: reduce the rank of its decoder's two largest matrices, and teach the result to
    predict what the full model predicts, on the training pictures of DATASET.

    Runs on the CPU. Score the result with `captioner evaluate`, and export it with `captioner export`.
    """

    dataset: Dataset
    out: Annotated[Path, arg("FOLDER")]
    """The new folder."""
    rank: Annotated[int, arg("INT")]
    """The new rank; the lower, the faster and the less exact."""
    model: Annotated[Path | None, arg("MODEL", "the model that ships with captioner")] = None
    """Model to reduce: a folder, or hf://OWNER/NAME[@REVISION] on the Hugging Face Hub."""
    pictures: Annotated[int, arg("INT", "4000")] = 4_000
    """Training pictures to learn from, chosen at random, as many from each data set of a mixture. Each takes
    up to a quarter of a megabyte of memory."""
    epochs: Annotated[int, arg("INT", "6")] = 6
    """Passes over them."""
    mixed_precision: Annotated[Literal["no", "bf16"], arg("no|bf16", "no")] = "no"
    """Number format of learning; bf16 is several times faster if the processor supports it."""
    seed: Annotated[int, arg("INT", "0")] = 0
    """Seed of everything random."""
    hardware: HardwareFlags = field(default_factory=HardwareFlags)

    def run(self) -> int:
        """Reduce, learn and save."""
        report_broken_plugins(BROKEN)
        if self.out.exists():
            raise UsageError(f"--out {self.out} exists; choose a new folder")
        for name in ("rank", "pictures", "epochs"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} must be at least 1, not {getattr(self, name)}")
        from captioner.backends.torch_backend import limit_threads
        from captioner.checkpoint.weights import load_checkpoint, save_checkpoint
        from captioner.training.distillation import distil

        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        limit_threads(self.hardware.threads)
        records = self.dataset.read(["train"])
        if not records:
            raise CaptionerError("the data set has no training pictures")
        folder = model_folder(self.model)
        checkpoint = load_checkpoint(folder)
        captioner = Captioner.load(folder, device="cpu", threads=self.hardware.threads)
        chosen = []
        datasets = dict.fromkeys(record.dataset for record in records)
        for name in datasets:
            own = [record for record in records if record.dataset == name]
            count = min(-(-self.pictures // len(datasets)), len(own))
            chosen += random.Random(self.seed).sample(own, count)
        reduced = distil(
            checkpoint,
            captioner,
            chosen,
            rank=self.rank,
            epochs=self.epochs,
            in_bf16=self.mixed_precision == "bf16",
            seed=self.seed,
        )
        save_checkpoint(self.out, reduced)
        sys.stdout.write(f"{self.out}\n")
        return 0
