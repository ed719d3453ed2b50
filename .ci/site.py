"""Hooks of mkdocs: pages from outside docs/, and links to files of the repository."""

import os
import re
from filecmp import cmp
from importlib.metadata import metadata
from pathlib import Path, PurePosixPath
from shutil import copy

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?(\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take the repository's address from pyproject.toml, and the notebooks from their folder."""
    urls = dict(line.split(", ", 1) for line in metadata("captioner").get_all("Project-URL") or [])
    config.repo_url, config.repo_name = urls["Source"], "captioner"
    # The plugin that renders notebooks needs files in this folder; git ignores the copies.
    copies = Path(config.docs_dir) / "notebooks"
    copies.mkdir(exist_ok=True)
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        if not (copies / notebook.name).is_file() or not cmp(notebook, copies / notebook.name):
            copy(notebook, copies)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The README is the first page."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to pages of this site stay; others to files of the repository lead to their source."""
    here = PurePosixPath(page.file.src_uri).parent
    folder = ROOT if page.file.src_uri == "index.md" else ROOT / ("docs" if here == PurePosixPath() else here)

    def resolved(match: "re.Match[str]") -> str:
        before, target, anchor, after = match.groups()
        path = (folder / target).resolve()
        inside = path.relative_to(ROOT).as_posix()
        if not path.exists():
            raise ValueError(f"{page.file.src_uri} links to {target}, which does not exist")
        uri = inside.removeprefix("docs/")
        if inside.startswith(("docs/", "notebooks/")) and files.get_file_from_path(uri):
            return f"{before}{os.path.relpath(uri, here)}{anchor or ''}{after}"
        return f"{before}{config.repo_url}/blob/main/{inside}{anchor or ''}{after}"

    return LINK.sub(resolved, markdown)
