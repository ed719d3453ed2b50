"""Checks the shapes in captioner's signatures while the tests run (see addopts in pyproject.toml)."""

from beartype import BeartypeConf, beartype

# An int is accepted where a float is asked for, as Python's typing has it (PEP 484).
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
