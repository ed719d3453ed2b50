"""Seeds that depend on where a run is, not on what happened before, so that a resumed run repeats it."""

import numpy as np


def derived_seed(*place: int) -> int:
    """A seed for a place, such as (the run's seed, step, process); different places give unrelated ones."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])
