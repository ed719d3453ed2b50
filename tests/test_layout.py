"""What may import what."""

import ast
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from importlinter.cli import lint_imports

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
        "captioner.cli.main",
        "captioner.cli.caption",
        "captioner.cli.batch",
        "captioner.cli.evaluate",
        "captioner.cli.train",
        "captioner.backends.onnx_backend",
        "captioner.decoding.generate",
        "captioner.images.geometry",
        "captioner.images.prefetch",
        "captioner.inference",
        "captioner.records",
        "datasets.registry",
        "train",
    ],
)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    assert not modules_after(f"import {module}") & set(HEAVY)


def test_imports_point_down_only() -> None:
    """The layers in pyproject.toml, by import-linter; the library imports neither train.py nor datasets."""
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=None) == 0


def test_library_imports_no_packages_of_hugging_face_by_the_names_of_ours() -> None:
    forbidden = {"datasets", "transformers", "evaluate"}
    for path in (ROOT / "captioner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & forbidden, path.name


def test_sub_packages_are_empty_and_part_of_the_wheel() -> None:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    folders = {path.parent for path in (ROOT / "captioner").rglob("*.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(settings["packages"]) == packages | {"captioner_datasets"}
    for folder in folders - {ROOT / "captioner"}:
        assert (folder / "__init__.py").read_text() == ""


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
