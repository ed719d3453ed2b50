"""Exports of models, shared by the tests, because each takes seconds."""

import hashlib
from pathlib import Path

import pytest

from captioner.backends.export import export_model
from captioner.checkpoint.folder import FILES


def export_once(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a model, made once per session for folders with the same files; copy it to change it."""
    content = b"".join((model_folder / name).read_bytes() for name in FILES)
    exported = tmp_path_factory.getbasetemp() / f"export-{hashlib.sha256(content).hexdigest()[:16]}"
    if not exported.is_dir():
        export_model(model_folder, exported)
    return exported
