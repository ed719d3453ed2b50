"""What may import what."""

import ast
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from captioner.training.recipe import PRESETS
from datasets.registry import DATASETS, TRANSLATION_DATASETS
from tests.conftest import ROOT

HEAVY = ("torch", "timm", "matplotlib", "pycocoevalcap", "pycocotools")


def modules_after(code: str) -> set[str]:
    code = f"{code}\nimport sys; print(' '.join(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "captioner",
        "captioner.cli.caption",
        "captioner.cli.evaluate",
        "captioner.images.reading",
        "captioner.inference",
        "captioner.backends.onnx_backend",
        "captioner.images.prefetch",
        "captioner.records",
        "captioner.decoding.search",
        "datasets.registry",
    ],
)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    assert not modules_after(f"import {module}") & set(HEAVY)


def test_library_imports_neither_the_readers_nor_hugging_face_packages() -> None:
    forbidden = {"datasets", "transformers", "evaluate"}
    for path in (ROOT / "captioner").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & forbidden, path.name


def test_public_names_are_there() -> None:
    import captioner

    assert all(getattr(captioner, name) is not None for name in captioner.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = captioner.nothing


def test_every_data_set_has_a_recipe_and_is_known_to_the_installed_command() -> None:
    assert PRESETS.keys() == DATASETS.keys() | TRANSLATION_DATASETS.keys()
    (installed,) = entry_points(group="captioner.datasets")
    found = installed.load()
    assert {name: reader.__name__ for name, reader in found.items()} == {
        name: reader.__name__ for name, reader in DATASETS.items()
    }
    assert {reader.__module__.split(".")[0] for reader in found.values()} == {"captioner_datasets"}
