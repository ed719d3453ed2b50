"""Multi30k: sentences are read with the translations on the same line, and nothing else is."""

import gzip
from pathlib import Path

import pytest

from captioner.errors import CaptionerError
from datasets.multi30k import Multi30k

ENGLISH = "A dog runs.\nTwo men, outside.\n"
GERMAN = "Ein Hund läuft.\nZwei Männer, draußen.\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "train.en").write_text(ENGLISH, encoding="utf-8")
    (tmp_path / "train.de.gz").write_bytes(gzip.compress(GERMAN.encode()))
    (tmp_path / "val.en").write_text("A cat.", encoding="utf-8")
    (tmp_path / "val.de").write_text("Eine Katze.", encoding="utf-8")
    return tmp_path


def test_lines_are_paired_with_their_translations_compressed_or_not(root: Path) -> None:
    records = Multi30k(root=root).read(["train", "dev"])
    assert [(record.sentence, record.translations, record.split) for record in records] == [
        ("A dog runs.", ("Ein Hund läuft.",), "train"),
        ("Two men, outside.", ("Zwei Männer, draußen.",), "train"),
        ("A cat.", ("Eine Katze.",), "dev"),
    ]
    assert [record.sentence_id for record in records] == ["train:1", "train:2", "val:1"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("train.en", ENGLISH + "One more.\n", "train.en has 3 lines and train.de 2"),
        ("train.en", "A dog runs.\n \n", "train.en:2: the line is blank"),
        ("train.en", "", "train.en:1: the line is blank"),
        ("train.en", b"A d\xf6g.\n", r"cannot read .*train\.en: "),
        ("train.de.gz", b"not compressed", r"cannot read .*train\.de\.gz: "),
        ("train.de.gz", gzip.compress(GERMAN.encode(), mtime=0)[:-9], r"cannot read .*train\.de\.gz: "),
        ("train.en", None, "has neither train.en nor train.en.gz; see --root"),
    ],
)
def test_files_that_are_not_in_the_format_are_reported(
    root: Path, name: str, content: str | bytes | None, complaint: str
) -> None:
    if content is None:
        (root / name).unlink()
    else:
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CaptionerError, match=complaint):
        Multi30k(root=root).read(["train"])
