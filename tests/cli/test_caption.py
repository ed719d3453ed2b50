import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from importlib.metadata import EntryPoint
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from captioner.checkpoint.folder import model_digest
from captioner.checkpoint.weights import CaptioningCheckpoint, save_checkpoint
from captioner.cli import options
from captioner.cli.main import caption_main, main
from captioner.config import DecodingOptions
from captioner.formats import escape_name, format_caption, format_name
from captioner.inference import Captioner
from datasets.coco import Coco
from datasets.registry import DATASETS
from tests.conftest import ROOT, noise_picture, torch_model


class Result(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three pictures, one more below it, and a text file."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for index, name in enumerate(["b.png", "a.JPG", "c.webp", "below/a.png"]):
        noise_picture(index).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    return folder


@pytest.fixture
def run(model_folder: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run caption.py's entry point with the tiny model."""

    def run(*arguments: str | Path) -> Result:
        with pytest.raises(SystemExit) as exit_:
            caption_main([*map(str, arguments), "--model", str(model_folder)])
        captured = capfd.readouterr()
        return Result(exit_.value.code, captured.out, captured.err)

    return run


def files_of(out: str) -> list[str]:
    return [Path(line.split("\t")[0]).name for line in out.splitlines()]


def test_folder_is_captioned_in_the_order_of_names(run: Run, pictures: Path) -> None:
    result = run(pictures)
    assert result.status == 0
    assert result.err == ""
    assert files_of(result.out) == ["a.JPG", "b.png", "c.webp"]
    assert all(len(line.split("\t")) == 2 for line in result.out.splitlines())


def test_linked_folders_are_followed_and_circles_end(run: Run, pictures: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (pictures / "below").rename(elsewhere)
    (pictures / "below").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(pictures)
    assert files_of(run(pictures, "--recursive").out) == ["a.JPG", "b.png", "c.webp", "a.png"]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_share_the_pictures(run: Run, pictures: Path, count: int) -> None:
    """In equal numbers, each picture once, with the same caption."""
    whole = run(pictures, "--recursive").out.splitlines()
    shards = [
        run(pictures, "--recursive", "--shard", f"{number}/{count}").out.splitlines()
        for number in range(1, count + 1)
    ]
    assert sorted(line for lines in shards for line in lines) == sorted(whole)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize(
    "shard", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/5", "/", "1/99999999999999999999"]
)
def test_shard_that_does_not_exist_is_refused(run: Run, pictures: Path, shard: str) -> None:
    result = run(pictures, f"--shard={shard}")
    assert result.status == 2
    assert f"--shard {shard} must be" in result.err


def test_pictures_that_need_a_plugin_or_a_converter_are_named(run: Run, pictures: Path) -> None:
    (pictures / "photo.NEF").write_bytes(b"II*\0")
    result = run(pictures)
    assert result.status == 1
    assert files_of(result.out) == ["a.JPG", "b.png", "c.webp"]
    assert "photo.NEF: camera raw cannot be read; export it as JPEG, PNG or TIFF" in result.err


def test_recursive_walks_below(run: Run, pictures: Path) -> None:
    assert files_of(run(pictures, "--recursive").out) == ["a.JPG", "b.png", "c.webp", "a.png"]


def test_paths_come_from_standard_input_too(
    run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latin = os.fsencode(pictures) + b"/caf\xe9.png"
    noise_picture(5).save(os.fsdecode(latin))
    lines = b"\n".join([bytes(pictures / "c.webp"), b"", latin, bytes(pictures / "b.png"), b""])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    result = run("-", "--format", "jsonl")
    assert result.status == 0
    files = [os.fsencode(json.loads(line)["file"]) for line in result.out.splitlines()]
    assert files == [bytes(pictures / "c.webp"), latin, bytes(pictures / "b.png")]


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        (b"\xef\xbb\xbf%s/b.png\r\n%s/c.webp", ()),  # as Windows' editors save it
        (b"%s/b.png\0%s/c.webp\0", ("--null",)),
        ("%s/b.png\r\n%s/c.webp".encode("utf-16"), ()),  # as PowerShell writes it
    ],
)
def test_lists_of_names_as_programs_write_them(
    run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch, given: bytes, flags: tuple[str, ...]
) -> None:
    encoding = "utf-16" if given.startswith(b"\xff\xfe") else "latin-1"
    filled = given.decode(encoding).replace("%s", str(pictures)).encode(encoding)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(filled)))
    assert files_of(run("-", *flags).out) == ["b.png", "c.webp"]


def test_picture_on_standard_input_is_refused(
    run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((pictures / "a.JPG").read_bytes())))
    result = run("-")
    assert (result.status, result.out) == (1, "")
    assert (
        "standard input is a picture, but - reads the names of pictures; give the file itself" in result.err
    )


def test_patterns_that_the_shell_did_not_expand_and_urls(run: Run, pictures: Path) -> None:
    (pictures / "[1].png").write_bytes((pictures / "b.png").read_bytes())  # a name, which exists
    assert files_of(run(pictures / "?.png", pictures / "[1].png").out) == ["b.png", "[1].png"]
    (pictures / "below [2]").mkdir()
    (pictures / "below [2]" / "d.png").write_bytes((pictures / "b.png").read_bytes())
    assert files_of(run(pictures / "below [2]" / "*.png").out) == ["d.png"]
    result = run(pictures / "*.bmp", "https://example.org/a.jpg")
    assert result.status == 1
    assert "*.bmp: no such file" in result.err
    assert "example.org/a.jpg: URLs are not fetched: download it first" in result.err


def test_captions_are_written_beside_the_pictures(run: Run, pictures: Path) -> None:
    (pictures / "b.txt").write_text("by hand")
    result = run(pictures, "--sidecar", ".txt")
    assert result.status == 0
    assert files_of(result.out) == ["a.JPG", "c.webp"]
    texts = [line.split("\t")[1] for line in result.out.splitlines()]
    assert [(pictures / name).read_text() for name in ("a.txt", "b.txt", "c.txt")] == [
        f"{texts[0]}\n",
        "by hand",
        f"{texts[1]}\n",
    ]
    assert run(pictures, "--sidecar", ".txt").out == ""
    assert files_of(run(pictures, "--sidecar", ".txt", "--overwrite").out) == ["a.JPG", "b.png", "c.webp"]
    assert (pictures / "b.txt").read_text() != "by hand"


@pytest.mark.parametrize("figure", ["--output", "--gallery"])
def test_refused_command_leaves_the_files_of_the_last_one(
    run: Run, pictures: Path, tmp_path: Path, figure: str
) -> None:
    out = tmp_path / "captions.html"
    assert run(pictures, figure, out).status == 0
    before = out.read_bytes()
    assert before
    assert run(pictures, figure, out, "--must-include", "zzz").status == 1
    assert run(tmp_path / "misspelled", figure, out).status == 1
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--gallery", "OUT", "--output", "OUT"), "--output and --gallery are the same file"),
        (("--output", "captions.json"), "captions are JSON lines; write to a .jsonl"),
        (("--shard", "1/2", "--overlay", "OUT"), "--shard draws no figures"),
        (("--null",), "--null needs -"),
        (("--columns", "2"), "--columns needs a figure"),
        (("--figure-format", "pdf"), "--figure-format needs a figure"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    run: Run, pictures: Path, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    out = str(tmp_path / "out.html")
    result = run(pictures, *(out if flag == "OUT" else flag for flag in flags))
    assert result.status == 2
    assert message in result.err


def test_list_on_standard_input_is_not_overwritten(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tmp_path / "names.txt"
    names.write_text(f"{pictures / 'b.png'}\n")
    with names.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        result = run("-", "--output", names)
    assert result.status == 2
    assert "--output is the list on standard input" in result.err
    assert names.read_text() == f"{pictures / 'b.png'}\n"


def test_empty_standard_input_is_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as file:
        monkeypatch.setattr(sys, "stdin", file)
        result = run("-")
    assert (result.status, result.err) == (1, "captioner: standard input names no pictures\n")


def test_captions_without_the_words_to_draw_have_no_figure(run: Run, pictures: Path, tmp_path: Path) -> None:
    result = run(pictures / "b.png", "--overlay", tmp_path / "out", "--words", "zzz")
    assert result.status == 0
    assert "1 captions without zzz have no figure" in result.err
    assert not list((tmp_path / "out").iterdir())


def test_pictures_that_have_a_sidecar_are_counted(run: Run, pictures: Path) -> None:
    assert run(pictures, "--sidecar", ".txt").err == ""
    again = run(pictures, "--sidecar", ".txt")
    assert "3 pictures that have a .txt were skipped; --overwrite captions them again" in again.err


def test_two_pictures_of_one_stem_are_refused_a_sidecar(run: Run, pictures: Path) -> None:
    (pictures / "b.bmp").write_bytes((pictures / "b.png").read_bytes())
    result = run(pictures, "--sidecar", ".txt")
    assert result.status == 1
    assert "b.bmp: b.png would share b.txt; rename one of them" in result.err
    assert files_of(result.out) == ["a.JPG", "c.webp"]
    for name in ("frame.001", "frame.002"):  # of no known suffix, given by name
        (pictures / name).write_bytes((pictures / "c.webp").read_bytes())
    result = run(pictures / "frame.001", pictures / "frame.002", "--sidecar", ".txt")
    assert files_of(result.out) == ["frame.001"]
    assert "frame.001 would share frame.txt" in result.err
    (pictures / "frame.txt").unlink()
    assert sorted(path.name for path in pictures.glob("?.txt")) == ["a.txt", "c.txt"]


def test_sidecar_spares_pictures_and_goes_on_after_what_cannot_be_written(run: Run, pictures: Path) -> None:
    """A picture that has the sidecar's own name, raw files beside JPEGs, names that are too long or empty."""
    content = (pictures / "c.webp").read_bytes()
    for name in ("photo.cap", f"{'n' * 248}.png", "a.CR2"):
        (pictures / name).write_bytes(content)
    named = [
        pictures / "photo.cap",
        "",
        pictures / f"{'n' * 248}.png",
        pictures / "a.CR2",
        pictures / "a.JPG",
    ]
    result = run(*named, "--sidecar", ".caption")
    assert result.status == 1
    assert (pictures / "a.caption").exists()
    assert "photo.caption" in {path.name for path in pictures.iterdir()}
    result = run(pictures / "photo.cap", "--sidecar", ".cap", "--overwrite")
    assert result.status == 1
    assert "a file of that suffix cannot have a sidecar" in result.err
    assert (pictures / "photo.cap").read_bytes() == content


@pytest.mark.parametrize("suffix", ["txt", ".", ".png", "./x"])
def test_sidecar_needs_a_suffix(run: Run, pictures: Path, suffix: str) -> None:
    result = run(pictures, "--sidecar", suffix)
    assert result.status == 2
    assert "must be a suffix such as .txt, and not that of a picture" in result.err


def test_exiftool_takes_the_captions(run: Run, pictures: Path, tmp_path: Path) -> None:
    table = tmp_path / "captions.csv"
    assert run(pictures, "--format", "exiftool", "--output", table, "--num-captions", "2").status == 0
    rows = list(csv.reader(table.read_text().splitlines()))
    texts = [line.split("\t")[1] for line in run(pictures).out.splitlines()]
    names = ("a.JPG", "b.png", "c.webp")
    assert rows == [
        ["SourceFile", "XMP-dc:Description"],
        *([str(pictures / name), text] for name, text in zip(names, texts, strict=True)),
    ]
    if shutil.which("exiftool") is None:
        return
    command = ["exiftool", f"-csv={table}", "-overwrite_original", *(pictures / name for name in names)]
    subprocess.run(command, check=True, capture_output=True)
    for name, text in zip(names, texts, strict=True):
        shown = subprocess.run(
            ["exiftool", "-s3", "-XMP-dc:Description", pictures / name],
            check=True,
            capture_output=True,
            text=True,
        )
        assert shown.stdout == f"{text}\n"


def test_bad_files_are_named_and_the_rest_is_captioned(run: Run, pictures: Path) -> None:
    (pictures / "aa.jpg").write_text("no picture")
    (pictures / "bb.png").touch()
    whole = (pictures / "b.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[: len(whole) // 2])
    good = set(run(pictures / "a.JPG", pictures / "b.png", pictures / "c.webp").out.splitlines())
    result = run(pictures, pictures / "gone.jpg")
    assert result.status == 1
    assert set(result.out.splitlines()) == good
    reasons = result.err.splitlines()
    assert [line.split(": ")[1].rpartition("/")[2] for line in reasons] == [
        "aa.jpg",
        "bb.png",
        "cut.png",
        "gone.jpg",
    ]
    assert "Traceback" not in result.err


def test_folder_without_pictures_is_reported(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run(tmp_path / "empty")
    assert (result.status, result.out) == (1, "")
    assert "no pictures in this folder; --recursive searches its subfolders too" in result.err


def test_jsonl_has_all_that_is_promised(run: Run, pictures: Path) -> None:
    result = run(pictures, "--format", "jsonl", "--with-attention")
    for line in result.out.splitlines():
        row = json.loads(line)
        assert list(row) == ["file", "caption", "tokens", "log_prob", "grid", "alphas"]
        assert np.shape(row["alphas"]) == (len(row["tokens"]), *row["grid"])
        np.testing.assert_allclose(np.sum(row["alphas"], axis=(1, 2)), 1, atol=1e-4)
        assert row["log_prob"] < 0
    assert "alphas" not in json.loads(run(pictures, "--format", "jsonl").out.splitlines()[0])


def test_csv_reads_back(run: Run, pictures: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(run(pictures, "--format", "csv").out)))
    assert [Path(row["file"]).name for row in rows] == ["a.JPG", "b.png", "c.webp"]
    assert all(row["caption"] and float(row["log_prob"]) < 0 for row in rows)


def test_output_file_holds_what_would_be_printed(run: Run, pictures: Path, tmp_path: Path) -> None:
    printed = run(pictures).out
    result = run(pictures, "--output", tmp_path / "captions.txt")
    assert result.out == ""
    assert (tmp_path / "captions.txt").read_text() == printed


def test_batch_size_changes_no_caption(run: Run, pictures: Path) -> None:
    assert run(pictures, "--batch-size", "1").out == run(pictures, "--batch-size", "3").out


def test_decoding_flags_reach_the_search(run: Run, pictures: Path) -> None:
    rows = run(pictures, "--format", "jsonl", "--max-words", "2", "--beam-size", "1").out.splitlines()
    assert all(len(json.loads(row)["tokens"]) <= 2 for row in rows)


def test_overlays_of_pictures_with_the_same_name_do_not_overwrite_each_other(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    result = run(pictures, "--recursive", "--overlay", tmp_path / "out" / "deep")
    assert result.status == 0
    names = sorted(path.name for path in (tmp_path / "out" / "deep").iterdir())
    assert names == [f"{stem}.attention.png" for stem in ("a-2", "a", "b", "c")]
    with Image.open(tmp_path / "out" / "deep" / "b.attention.png") as figure:
        assert min(figure.size) > 100


def test_overlay_beside_the_pictures_overwrites_none_of_them(run: Run, pictures: Path) -> None:
    before = (pictures / "b.png").read_bytes()
    run(pictures / "b.png", "--overlay", pictures)
    assert (pictures / "b.png").read_bytes() == before


def test_own_figures_in_a_folder_are_skipped(run: Run, pictures: Path) -> None:
    for _ in range(2):
        result = run(pictures, "--recursive", "--overlay", pictures / "below")
        assert files_of(result.out) == ["a.JPG", "b.png", "c.webp", "a.png"]


def test_figure_that_cannot_be_named_is_reported_and_the_rest_is_drawn(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    noise_picture(0).save(pictures / ("b" * 245 + ".png"))
    result = run(pictures, "--overlay", tmp_path / "out")
    assert result.status == 1
    assert len(result.out.splitlines()) == 4
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert "its name is too long for a figure's" in result.err


def test_raw_cells_are_drawn_on_request(run: Run, pictures: Path, tmp_path: Path) -> None:
    for style in ("smooth", "cells"):
        run(pictures / "b.png", "--overlay", tmp_path / style, "--overlay-style", style)
    figures = [(tmp_path / style / "b.attention.png").read_bytes() for style in ("smooth", "cells")]
    assert figures[0] != figures[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give pictures, folders, or -"),
        (["x.jpg", "--beam-size", "0"], "--beam-size must be in 1..1000, not 0"),
        (["x.jpg", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["x.jpg", "--threads", "0"], "--threads must be at least 1"),
        (["x.jpg", "--output", "y.JPG"], "--output y.JPG would overwrite a picture"),
        (["x.jpg", "--with-attention"], "--with-attention needs --format jsonl"),
        (["x.jpg", "--format", "xml"], "--format"),
        (["x.jpg", "--no-such-flag"], "--no-such-flag"),
    ],
)
def test_wrong_usage_ends_with_status_2(run: Run, arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert (result.status, result.out) == (2, "")
    assert words in result.err
    assert "Traceback" not in result.err


def test_places_that_cannot_be_written_are_one_line(run: Run, pictures: Path) -> None:
    for flag in ("--output", "--overlay"):
        result = run(pictures, flag, pictures / "notes.txt" / "x")
        assert result.status == 1
        assert len(result.err.splitlines()) == 1
        assert "cannot" in result.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_full_disk_is_one_line(run: Run, pictures: Path) -> None:
    result = run(pictures, "--output", "/dev/full")
    assert (result.status, result.err) == (1, "captioner: cannot write /dev/full: No space left on device\n")


def test_missing_model_is_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exit_:
        caption_main(["x.jpg", "--model", str(tmp_path / "nothing"), "--max-words", "0"])
    assert exit_.value.code == 2  # wrong usage shows before anything is loaded
    capfd.readouterr()
    with pytest.raises(SystemExit) as exit_:
        caption_main(["x.jpg", "--model", str(tmp_path / "nothing")])
    captured = capfd.readouterr()
    assert exit_.value.code == 1
    assert captured.err.startswith("captioner: ")
    assert "is not a model folder; give one that contains model.safetensors" in captured.err


def test_names_with_tabs_and_newlines_keep_to_their_line(run: Run, tmp_path: Path) -> None:
    noise_picture(0).save(tmp_path / "tab\there\nand there.png")
    result = run(tmp_path / "tab\there\nand there.png")
    assert len(result.out.splitlines()) == 1
    assert result.out.split("\t")[0].endswith("tab\\there\\nand there.png")
    (tmp_path / "two  blanks\t.jpg").touch()
    result = run(tmp_path / "two  blanks\t.jpg")
    assert result.err.endswith("two  blanks\\t.jpg: the file is empty\n")


def test_names_that_are_not_utf8_keep_their_bytes(captioner: Captioner, tmp_path: Path) -> None:
    name = os.fsdecode(bytes(tmp_path) + b"/caf\xe9.png")
    noise_picture(0).save(name)
    caption = captioner.caption(name)
    assert format_caption(caption, "text", with_attention=False).startswith(name)
    assert json.loads(format_caption(caption, "jsonl", with_attention=False))["file"] == name


def test_captioner_caption_is_the_same_command(
    run: Run, pictures: Path, model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = run(pictures).out
    with pytest.raises(SystemExit) as exit_:
        main(["caption", str(pictures), "--model", str(model_folder)])
    assert (exit_.value.code, capfd.readouterr().out) == (0, expected)


@pytest.mark.slow
def test_shipped_model_captions_the_examples(tmp_path: Path) -> None:
    command = [sys.executable, "caption.py", "examples", "--overlay", str(tmp_path), "--format", "jsonl"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    examples = sorted(path.name for path in (ROOT / "examples").glob("*.jpg"))
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(row["file"]).name for row in rows] == examples
    assert len({row["caption"] for row in rows}) > len(examples) / 2  # not the same caption for every picture
    assert all(4 <= len(row["tokens"]) <= 20 for row in rows)
    assert len(list(tmp_path.glob("*.attention.png"))) == len(examples)


@pytest.mark.slow
def test_reader_that_closes_the_pipe_ends_it_quietly(pictures: Path, model_folder: Path) -> None:
    command = (
        f"{sys.executable} caption.py {pictures} {pictures} --batch-size 1 --model {model_folder} | head -n 1"
    )
    result = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""


@pytest.mark.parametrize("arguments", ["caption --help-all", "caption --nonsense 2>&1", "--help"])
def test_help_that_is_not_read_to_its_end_ends_quietly(arguments: str) -> None:
    start = "from captioner.cli.main import main; main()"
    command = f"{sys.executable} -c '{start}' {arguments} | head -n 1"
    result = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_figures_of_every_kind_in_one_run(run: Run, pictures: Path, tmp_path: Path) -> None:
    result = run(
        *(pictures, "--overlay", tmp_path / "o", "--matrix", tmp_path / "m", "--figure-format", "svg"),
        *("--animate", tmp_path / "a.gif", "--gallery", tmp_path / "all.html"),
    )
    assert (result.status, result.err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [
        f"{name}.attention.svg" for name in "abc"
    ]
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        f"{name}.matrix.svg" for name in "abc"
    ]
    assert sorted(path.name for path in tmp_path.glob("*.gif")) == ["a-2.gif", "a-3.gif", "a.gif"]
    assert (tmp_path / "all.html").read_text().count("<article") == 3


def test_own_figures_are_not_captioned_when_a_folder_is_walked(run: Run, pictures: Path) -> None:
    before = run(pictures).out
    run(pictures, "--overlay", pictures, "--matrix", pictures)
    assert run(pictures).out == before


def test_refused_figures_leave_the_captions_that_are_there(run: Run, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("captions of yesterday")
    for arguments in (
        ("--overlay", tmp_path / "o", "--colormap", "none"),
        ("--animate", tmp_path / "none" / "a.gif"),
    ):
        result = run(pictures, "--output", tmp_path / "old.txt", *arguments)
        assert result.status != 0
        assert result.err.startswith("captioner: ")
        assert (tmp_path / "old.txt").read_text() == "captions of yesterday"


def test_words_are_picked_with_commas_or_spaces(run: Run, pictures: Path, tmp_path: Path) -> None:
    words = run(pictures / "b.png").out.split("\t")[1].split()
    chosen, other = words[0], next(word for word in words if word != words[0])
    for number, names in enumerate([[chosen, other], [f"{chosen},{other}"]]):
        folder = tmp_path / str(number)
        result = run(pictures / "b.png", "--overlay", folder, "--figure-format", "svg", "--words", *names)
        assert result.err == ""
    texts = [(tmp_path / str(number) / "b.attention.svg").read_text() for number in range(2)]
    assert texts[0] == texts[1]
    assert texts[0].count(f">{chosen}</text>") == words.count(chosen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--animate", "a.mp4"], "--animate a.mp4 must end in .gif"),
        (["--gallery", "a.txt"], "--gallery a.txt must end in .html"),
        (["--references", "a.json"], "--references needs --gallery"),
        (["--words", "dog", "b.png"], "--words took b.png for a word; give the pictures before"),
        (["--words", "dog", "photos/"], "--words took photos/ for a word; give the pictures before"),
        (["--overlay", "o", "--colormap", "hot pink"], "no colour map 'hot pink'"),
        (["--columns", "0"], "--columns must be in 1..100, not 0"),
        (["--dpi", "9"], "--dpi must be in 10..2400, not 9"),
    ],
)
def test_figures_that_cannot_be_are_refused_before_any_work(
    run: Run, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.png").touch()
    (tmp_path / "photos").mkdir()
    result = run("a.png", *arguments)
    assert result.status == 2
    assert message in " ".join(result.err.replace("│", " ").split())
    assert result.out == ""
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("model", "b.png", "photos")] == []


def test_more_captions_come_with_their_log_probabilities_best_first(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    three = (pictures / "b.png", "--num-captions", "3")
    best = run(pictures / "b.png").out
    lines = [line.split("\t") for line in run(*three).out.splitlines()]
    texts = [text for _, text, _ in lines]
    assert best == f"{lines[0][0]}\t{lines[0][1]}\n"
    assert len(lines) == len({line[1] for line in lines}) == 3
    lengths = [len(line[1].split()) + 1 for line in lines]
    scores = [float(line[2]) / length for line, length in zip(lines, lengths, strict=True)]
    assert scores == sorted(scores, reverse=True)
    row = json.loads(run(*three, "--format", "jsonl").out)
    assert [row["caption"], *(other["caption"] for other in row["alternatives"])] == texts
    rows = list(csv.reader(io.StringIO(run(*three, "--format", "csv").out)))
    assert [row[1:] for row in rows[1:]] == [line[1:] for line in lines]
    with_page = run(pictures / "b.png", "--gallery", tmp_path / "a.html")
    assert with_page.out == best


def test_captions_contain_the_words_that_they_must(run: Run, pictures: Path) -> None:
    for words in (["cat"], ["blue", "dog"]):
        for line in run(pictures, "--num-captions", "2", "--must-include", *words).out.splitlines():
            assert set(words) <= set(line.split("\t")[1].split())


def test_length_and_repetition_are_as_asked(run: Run, pictures: Path) -> None:
    long = [line.split("\t")[1].split() for line in run(pictures, "--min-words", "5").out.splitlines()]
    assert all(len(words) >= 5 for words in long)
    for line in run(pictures, "--min-words", "6", "--no-repeat-ngram", "1").out.splitlines():
        words = line.split("\t")[1].split()
        assert len(set(words)) == len(words)


def test_drawn_captions_depend_on_seed_and_picture_and_not_on_the_batch(run: Run, pictures: Path) -> None:
    def drawn(*arguments: str) -> list[str]:
        result = run(pictures, "--sample", "--num-captions", "4", *arguments)
        assert (result.status, result.err) == (0, "")
        return [line.split("\t")[1] for line in result.out.splitlines()]

    first = drawn("--seed", "3")
    assert len(first) == 12
    assert len(set(first)) > 6
    assert first == drawn("--seed", "3", "--batch-size", "1")
    assert first != drawn("--seed", "4")
    assert len(set(drawn("--top-k", "1")[:4])) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-captions", "0"], "--num-captions must be in 1..1000, not 0"),
        (["--top-k", "3"], "--top-k must be None without --sample, not 3; leave it out"),
        (["--sample", "--temperature", "0"], "--temperature must be at least 0.01, not 0.0"),
        (["--sample", "--must-include", "dog"], "--must-include must be empty with --sample, not ('dog',)"),
        (["--sample", "--diverse-groups", "2"], "--diverse-groups must be 1 with --sample or --must-include"),
        (["--diversity", "2"], "--diversity must be 0.5 without --diverse-groups, not 2.0; leave it out"),
        (
            ["--beam-size", "1000", "--diverse-groups", "3"],
            "--beam-size and --num-captions, in whole --diverse-groups, must be at most 1000, not 1002",
        ),
        (["--min-words", "7"], "--min-words must be in 1..6, the value of --max-words, not 7"),
        (["--must-include", "dog", "b.png"], "--must-include took b.png for a word"),
    ],
)
def test_decoding_that_makes_no_sense_is_refused(
    run: Run, pictures: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    result = run(pictures, *arguments)
    assert result.status == 2
    assert message in " ".join(result.err.replace("│", " ").split())
    assert result.out == ""


OPTIONS: dict[str, tuple[Any, list[str]]] = {
    "num_captions": (4, ["--num-captions", "4"]),
    "beam_size": (2, ["--beam-size", "2"]),
    "diverse_groups": (5, ["--diverse-groups", "5"]),
    "diversity": (1.5, ["--diversity", "1.5"]),
    "min_words": (5, ["--min-words", "5"]),
    "max_words": (4, ["--max-words", "4"]),
    "must_include": (("dog",), ["--must-include", "dog"]),
    "sample": (True, ["--sample"]),
    "top_k": (2, ["--top-k", "2"]),
    "seed": (7, ["--seed", "7"]),
}


def test_command_refuses_exactly_what_the_library_refuses(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> None:
    """Flags are applied to the model's own options, whatever those are."""
    asked: list[DecodingOptions] = []

    def caption_files(*_: object, options: DecodingOptions, **__: object) -> list[object]:
        asked.append(options)
        return []

    monkeypatch.setattr(Captioner, "caption_files", caption_files)
    monkeypatch.setattr(Captioner, "from_options", lambda _: captioner)
    triples = [*combinations(OPTIONS, 3)][::12]
    for names in (*combinations(OPTIONS, 1), *combinations(OPTIONS, 2), *triples):
        asked.clear()
        try:
            changes = {name: OPTIONS[name][0] for name in names}
            expected = [replace(captioner.config.decoding, **changes)]
        except ValueError:
            expected = []
        flags = [flag for name in names for flag in OPTIONS[name][1]]
        with pytest.raises(SystemExit) as exited:
            caption_main(["x.png", "--model", str(model_folder), *flags])
        assert asked == expected, flags
        assert exited.value.code == (0 if expected else 2), flags


def test_wider_searches_than_the_default_are_accepted(run: Run, pictures: Path) -> None:
    for flags in (
        ("--diverse-groups", "5"),
        ("--num-captions", "4", "--diverse-groups", "2"),
        ("--beam-size", "2", "--num-captions", "3"),
    ):
        result = run(pictures / "b.png", *flags)
        assert (result.status, result.err) == (0, "")


def test_gallery_shows_as_many_captions_as_asked_for(run: Run, pictures: Path, tmp_path: Path) -> None:
    def shown(*flags: str) -> int:
        page = tmp_path / "page.html"
        run(pictures / "b.png", "--gallery", page, *flags)
        return page.read_text().count('class="caption"')

    assert shown("--num-captions", "3") == 3
    assert shown("--num-captions", "2", "--beam-size", "6") == 2
    assert shown("--num-captions", "1") == 1
    assert shown() == 3  # without a number, all that the beam of the model finds


@pytest.mark.parametrize(
    ("name", "flags", "start"),
    [
        ("x.jsonl", (), '{"file": '),
        ("x.ndjson", (), '{"file": '),
        ("x.json", ("--format", "jsonl"), '{"file": '),
        ("x.csv", (), "file,caption,log_prob"),
        ("x.txt", (), "/"),
        ("x", (), "/"),
        ("x.csv", ("--format", "text"), "/"),
        ("x.txt", ("--format", "jsonl"), '{"file": '),
    ],
)
def test_format_follows_the_suffix_of_the_output(
    run: Run, pictures: Path, tmp_path: Path, name: str, flags: tuple[str, ...], start: str
) -> None:
    assert run(pictures, "--output", tmp_path / name, *flags).status == 0
    assert (tmp_path / name).read_text().startswith(start)


def test_own_animations_are_skipped_in_folders_whatever_they_are_called(run: Run, pictures: Path) -> None:
    before = run(pictures).out
    noise_picture(7).save(pictures / "theirs.gif")
    run(pictures / "b.png", pictures / "c.webp", "--animate", pictures / "clip.GIF")
    assert (pictures / "clip-2.GIF").exists()
    captioned = files_of(run(pictures).out)
    assert captioned == [*files_of(before), "theirs.gif"]
    assert files_of(run(pictures / "clip.GIF").out) == ["clip.GIF"]  # one given by name is captioned


def test_pipe_with_the_name_of_an_animation_is_reported_and_does_not_block(run: Run, pictures: Path) -> None:
    os.mkfifo(pictures / "d.gif")
    result = run(pictures)
    assert result.status == 1
    assert files_of(result.out) == ["a.JPG", "b.png", "c.webp"]
    assert result.err.endswith("d.gif: is not a file\n")


def test_output_of_any_valid_name_can_be_written_and_resumed(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    for name in ("n" * 244, "n" * 250 + ".csv"):
        assert run(pictures / "b.png", "--output", tmp_path / name).status == 0
        assert run(pictures, "--output", tmp_path / name, "--resume").status == 0
        assert len((tmp_path / name).read_text().splitlines()) == (4 if name.endswith("csv") else 3)


def test_sampled_and_several_captions_are_not_resumed(run: Run, pictures: Path, tmp_path: Path) -> None:
    for flags in (("--sample",), ("--num-captions", "2")):
        result = run(pictures, "--output", tmp_path / "x.txt", "--resume", *flags)
        assert result.status == 2
        assert "--resume continues neither" in result.err


def test_words_that_do_not_fit_into_a_caption_are_reported(run: Run, pictures: Path) -> None:
    result = run(pictures / "b.png", "--must-include", "dog", "cat", "--max-words", "1")
    assert result.status == 1
    assert "no caption of at most 1 words contains dog, cat; allow more words" in result.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_standard_output_is_one_line(unbuffered: str) -> None:
    start = "from captioner.cli.main import main; main()"
    command = [sys.executable, "-c", start, "version"]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert result.returncode == 1
    assert result.stderr == "captioner: cannot write standard output: No space left on device\n"


def test_model_of_other_preprocessing_is_another_model(model_folder: Path) -> None:
    def digest_with(change: Callable[[dict[str, Any]], None]) -> str:
        config = json.loads((model_folder / "config.json").read_text())
        before = json.dumps(config)
        change(config)
        (model_folder / "config.json").write_text(json.dumps(config))
        digest = model_digest(model_folder)
        (model_folder / "config.json").write_text(before)
        return digest

    same = digest_with(dict.copy)
    assert digest_with(lambda config: config["preprocess"].update(interpolation="nearest")) != same
    assert digest_with(lambda config: config["decoder"].update(gate="none")) != same
    assert digest_with(lambda config: config["decoding"].update(beam_size=7)) == same


def test_help_all_keeps_the_subcommand(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "flickr8k", "--help-all"])
    assert "--root" in capfd.readouterr().out


def test_resumed_output_has_captions_of_one_model_and_one_search_only(
    run: Run, pictures: Path, tmp_path: Path, captioner: Captioner, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "captions.jsonl"
    assert run(pictures / "b.png", "--output", out).status == 0
    first = out.read_bytes()
    for flags, changed in (
        (("--beam-size", "1"), "beam_size"),
        (("--with-attention",), "with_attention"),
        (("--format", "text"), "format"),
    ):
        result = run(pictures, "--output", out, "--resume", *flags)
        assert (result.status, out.read_bytes()) == (1, first)
        assert f"has captions made with another {changed}" in result.err
    with torch.no_grad():
        torch_model(captioner).decoder.output.bias[5] += 1
    other = tmp_path / "other"
    save_checkpoint(
        other, CaptioningCheckpoint(torch_model(captioner), captioner.config, captioner.vocabulary, {})
    )
    with pytest.raises(SystemExit):
        caption_main([str(pictures), "--output", str(out), "--resume", "--model", str(other)])
    assert "has captions made with another model" in capfd.readouterr().err
    assert out.read_bytes() == first
    assert run(pictures, "--output", out, "--resume").status == 0
    assert len(out.read_text().splitlines()) == 3
    (tmp_path / "foreign.txt").write_text("a\tb\n")
    result = run(pictures, "--output", tmp_path / "foreign.txt", "--resume")
    assert "was not written by captioner" in result.err
    assert (tmp_path / "foreign.txt").read_text() == "a\tb\n"


@settings(max_examples=200)
@given(st.text(st.characters(exclude_characters="/\0"), min_size=1), st.text(min_size=1))
def test_names_are_on_one_line_without_controls_and_stay_different(one: str, other: str) -> None:
    for output_format in ("text", "csv"):
        written = [format_name(name, output_format) for name in (one, other, f"'{one}", f"={one}")]
        assert (written[0] == written[1]) == (one == other)
        assert len(set(written[2:])) == 2
    lines = [escape_name(name) for name in (one, other)]
    for line in lines:
        assert len(line.splitlines()) == 1
        assert not any(unicodedata.category(character) == "Cc" for character in line)


def test_terminal_codes_in_a_name_reach_neither_output_nor_errors(run: Run, tmp_path: Path) -> None:
    name = "\x1b[31mred\x07\x9b.png"
    noise_picture(0).save(tmp_path / name)
    (tmp_path / f"bad{name}").touch()
    result = run(tmp_path / name, tmp_path / f"bad{name}")
    assert "\\x1b[31mred\\x07\\x9b.png\t" in result.out
    assert not set("\x1b\x07\x9b") & set(result.out + result.err)
    result = run("x.png", "--output", tmp_path / "none\x1b[2J" / "x")
    assert "\x1b" not in result.err


def test_help_that_most_people_need_fits_a_screen(capfd: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as exited:
            caption_main([flag])
        assert exited.value.code == 0
        shown[flag] = capfd.readouterr().out
    flags = {flag: set(re.findall(r"│ (--[\w-]+)", text)) for flag, text in shown.items()}
    assert len(shown["--help"].splitlines()) <= 48
    assert {"--output", "--model", "--beam-size", "--overlay", "--gallery"} < flags["--help"]
    assert flags["--help"] < flags["--help-all"]
    assert {"--sample", "--must-include", "--matrix", "--animate", "--dpi", "--threads"} < flags["--help-all"]


def test_word_that_the_model_does_not_know_is_named(run: Run, pictures: Path) -> None:
    for word, said in (("zebra", "is not in the model's vocabulary"), ("a dog", "is several words")):
        result = run(pictures, "--must-include", word)
        assert result.status == 1
        assert f"{word!r} {said}" in result.err


@pytest.mark.parametrize("package", ["ray", "pyarrow"])
def test_cluster_without_its_packages_says_what_to_install(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [
        name for name in sys.modules if re.fullmatch(r"captioner\.cluster\.(inputs|shards|ray_job)", name)
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as exited:
        main(["batch", str(tmp_path), "--output", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert exited.value.code == 2
    assert "pip install 'captioner[ray]'" in error
    assert len(error.splitlines()) == 1


@pytest.fixture
def broken_plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package whose entry point does not load, while commands are imported anew."""
    names = ("captioner.cli.evaluate", "captioner.cli.ground")
    before = {name: sys.modules.pop(name, None) for name in names}
    monkeypatch.setattr(options, "entry_points", broken_entry_points)
    yield
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update({name: module for name, module in before.items() if module is not None})


def broken_entry_points(**_: str) -> list[EntryPoint]:
    found = list(metadata.entry_points(group="captioner.datasets"))
    return [EntryPoint("theirs", "no_such_module:DATASETS", "captioner.datasets"), *found]


@pytest.mark.parametrize("arguments", [["version"], ["--help"], ["caption", "--help"]])
def test_broken_plugin_does_not_concern_commands_without_data_sets(
    arguments: list[str],
    broken_plugin: None,  # noqa: ARG001
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 0
    assert capsys.readouterr().err == ""


def test_broken_plugin_is_skipped_with_one_line(
    broken_plugin: None,  # noqa: ARG001
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["evaluate", "flickr8k", "--root", str(tmp_path)])
    first, second = capsys.readouterr().err.splitlines()
    assert "skipping data sets of broken plugins: theirs (ModuleNotFoundError: " in first
    assert second.startswith(f"captioner: {tmp_path} has no Flickr8k.token.txt or captions.txt")
    assert exited.value.code == 1


def exit_at_once() -> dict[str, type]:
    sys.exit("bye")


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (lambda: {"x": 42}, "TypeError: x is not a dataclass with a method read"),
        (lambda: {"coco": Coco}, "ValueError: the data set coco is already registered"),
        (lambda: 42, "TypeError: 'int' object is not iterable"),
        (exit_at_once, "SystemExit: bye"),
    ],
)
def test_plugins_may_be_broken_in_any_way(
    load: Callable[[], object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = list(metadata.entry_points(group="captioner.datasets"))
    monkeypatch.setattr(
        options, "entry_points", lambda **_: [*ours, SimpleNamespace(name="theirs", load=load)]
    )
    readers, broken = options.installed_datasets()
    assert set(readers) == set(DATASETS)
    assert broken == [options.BrokenPlugin("theirs", reason)]


def test_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["captoin"])
    assert exited.value.code == 2
    assert capsys.readouterr().err.startswith(
        "captioner: there is no command captoin; the commands are caption,"
    )
