"""Training runs of the studies, each trained once and kept."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).parent.parent))

from captioner.checkpoint.folder import read_metrics
from captioner.training.options import RunOptions
from captioner.training.recipe import Recipe
from captioner.training.run import training_run
from captioner.training.task import Task


def train_once(*, recipe: Recipe, make_task: Callable[[Accelerator], Task], options: RunOptions) -> Path:
    """Train, or resume, unless the run is already complete; returns the folder of its best model.

    Raises:
        CaptionerError: the folder contains a run of another recipe, or training fails.
    """
    best = options.out / "best"
    if not is_complete(best, recipe):
        with training_run(recipe=recipe, make_task=make_task, options=options, command={}) as trainer:
            trainer.run()
    return best


def is_complete(best: Path, recipe: Recipe) -> bool:
    """Whether a best model comes from a finished run of this recipe: its decoding options are chosen last."""
    if not best.is_dir():
        return False
    metrics = read_metrics(best)
    is_tuned = any(name.startswith("decoding_") for name in metrics)
    return is_tuned and is_same_recipe(metrics["recipe"], recipe)


def is_same_recipe(stored: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether stored settings are those of a recipe. Settings added since then had their defaults."""
    defaults = Recipe(encoder=type(recipe.encoder)())
    return defaults.overridden(stored).described() == recipe.described()
