"""Hundreds of bad pictures among good ones: each is captioned or reported, and the good ones lose nothing."""

import io
import json
import os
import random
import resource
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, features

from captioner.inference import Captioner
from tests.backends.exports import export_once
from tests.conftest import ROOT, noise_picture

FORMATS = {
    "PNG": "png",
    "JPEG": "jpg",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "PPM": "ppm",
    "TGA": "tga",
    "PCX": "pcx",
    "SGI": "sgi",
    "DDS": "dds",
    "ICO": "ico",
    "DIB": "dib",
    **({"WEBP": "webp"} if features.check("webp") else {}),
    **({"JPEG2000": "jp2"} if features.check("jpg_2000") else {}),
    **({"AVIF": "avif"} if features.check("avif") else {}),
}
"""Formats that Pillow writes, so that the tests can damage them, with the suffixes of their names."""

TRUNCATIONS = (1, 2, 8, 30, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
NUM_FLIPPED = 8


def encoded(picture: Image.Image, picture_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, picture_format, **options)
    return buffer.getvalue()


def png_of(width: int, height: int, *, is_complete: bool) -> bytes:
    """A grey PNG of any size; an incomplete one ends after its header."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + checksum

    sizes = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", sizes + b"\x08\x00\x00\x00\x00")
    if not is_complete:
        return start + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    packer = zlib.compressobj(9)
    rows = b"".join([packer.compress(b"\0" * (width + 1)) for _ in range(height)]) + packer.flush()
    return start + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def damaged() -> Iterator[tuple[str, bytes]]:
    """Truncated at many points, with flipped bytes, and under the name of another format."""
    draw = random.Random(0)
    names = list(FORMATS.values())
    for number, (picture_format, suffix) in enumerate(FORMATS.items()):
        content = encoded(noise_picture(number), picture_format)
        for point in TRUNCATIONS:
            end = int(point * len(content)) if isinstance(point, float) else point
            yield f"{suffix}-cut-at-{point}.{suffix}", content[:end]
        for flip in range(NUM_FLIPPED):
            changed = bytearray(content)
            for _ in range(1 + flip):
                changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
            yield f"{suffix}-flipped-{flip}.{suffix}", bytes(changed)
        yield f"{suffix}-as-another.{names[(number + 1) % len(names)]}", content


def odd() -> Iterator[tuple[str, bytes]]:
    """What is rare, and mostly valid."""
    picture = noise_picture(3)
    yield "nothing.jpg", b""
    yield "zeros.jpg", b"\0" * 1000
    yield "text.png", b"no picture at all"
    yield "page.jpg", b"<!DOCTYPE html><html></html>"
    yield "1x1.png", encoded(Image.new("RGB", (1, 1)), "PNG")
    yield "1x20000.png", encoded(Image.new("RGB", (1, 20_000)), "PNG")
    yield "20000x1.jpg", encoded(Image.new("RGB", (20_000, 1)), "JPEG")
    yield "header-of-30000.png", png_of(30_000, 30_000, is_complete=False)
    yield "header-of-2-billion.png", png_of(2**31 - 1, 2**31 - 1, is_complete=False)
    yield "bomb.png", png_of(30_000, 30_000, is_complete=True)
    yield "largest-allowed.png", png_of(12_000, 12_000, is_complete=True)
    yield "cmyk.jpg", encoded(picture.convert("CMYK"), "JPEG")
    yield "16-bit.png", encoded(Image.new("I;16", (20, 20), 40_000), "PNG")
    yield "float.tif", encoded(Image.new("F", (20, 20), float("nan")), "TIFF")
    yield "1-bit.png", encoded(picture.convert("1"), "PNG")
    yield "grey-alpha.png", encoded(picture.convert("LA"), "PNG")
    yield "palette.png", encoded(picture.convert("P"), "PNG", transparency=bytes(range(256)))
    yield "palette-one.gif", encoded(picture.convert("P"), "GIF", transparency=0)
    frames = [noise_picture(number) for number in range(3)]
    yield "animated.gif", encoded(picture, "GIF", save_all=True, append_images=frames)
    yield "animated.png", encoded(picture, "PNG", save_all=True, append_images=frames)
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"orientation-{orientation}.jpg", encoded(picture, "JPEG", exif=exif)
    for name, exif in {
        "cut": b"Exif\0\0MM",
        "wild": b"Exif\0\0II*\0\xff\xff\xff\xff",
        "no": b"12345",
    }.items():
        yield f"exif-{name}.jpg", encoded(picture, "JPEG", exif=exif)
    for name in (
        "new\nline",
        "tab\tbed",
        'quo"te',
        "apo'strophe",
        "$(touch x)",
        "; rm",
        "-dash",
        "ünïcödé",
        "日本",
    ):
        yield f"{name}.png", encoded(picture, "PNG")


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    """Paths as they are given to the command."""
    folder = tmp_path / "in"
    folder.mkdir()
    paths = []
    for name, content in [*damaged(), *odd()]:
        (folder / name).write_bytes(content)
        paths.append(str(folder / name))
    undecodable = os.fsencode(folder) + b"/\xff\xfe.png"
    Path(os.fsdecode(undecodable)).write_bytes(encoded(noise_picture(5), "PNG"))
    os.mkfifo(folder / "fifo.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "empty-folder.png").mkdir()
    (folder / "locked.png").write_bytes(encoded(noise_picture(5), "PNG"))
    (folder / "locked.png").chmod(0)
    names = ["fifo.png", "dangling.png", "loop.png", "empty-folder.png", "locked.png", "not-there.png"]
    return [
        *paths,
        os.fsdecode(undecodable),
        *(str(folder / name) for name in names),
        f"{folder}/" + "a" * 5000,
    ]


@pytest.mark.slow
def test_each_is_captioned_or_reported_and_good_ones_get_the_same_caption_as_alone(
    corpus: list[str], model_folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert len(corpus) >= 300
    exported = export_once(model_folder, tmp_path_factory)
    good = [tmp_path / f"good-{number}.png" for number in range(40)]
    for number, path in enumerate(good):
        noise_picture(number).save(path)
    between = len(corpus) // len(good)
    paths = list(corpus)
    for number, path in enumerate(good):
        paths.insert(number * (between + 1), str(path))
    # Root may read any file: the law is then that the picture is captioned.
    result = subprocess.run(
        [
            sys.executable,
            ROOT / "caption.py",
            "--format",
            "jsonl",
            "--model",
            exported,
            "--",
            *paths,
        ],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=300,
    )
    most_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    assert result.returncode == 1
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    reports = result.stderr.decode(errors="surrogateescape").splitlines()
    assert b"Traceback" not in result.stderr

    caption_of = {row["file"]: row["caption"] for row in rows}
    assert len(caption_of) == len(rows)
    shown = [path.replace("\n", "\\n").replace("\t", "\\t") for path in paths]
    reports_of = {
        path: [line for line in reports if line.startswith(f"captioner: {path}: ")] for path in shown
    }
    for path, line_start in zip(paths, shown, strict=True):
        assert (path in caption_of) + len(reports_of[line_start]) == 1, path
    assert [line for line in reports if not line.startswith("captioner: ")] == []
    assert len(reports) + len(rows) == len(paths)
    assert [row["file"] for row in rows] == [path for path in paths if path in caption_of]

    captioner = Captioner.load(exported, device="cpu")
    for path in good:
        assert caption_of[str(path)] == captioner.caption(path).text
    folder = tmp_path / "in"
    for name in (
        "1x1.png",
        "cmyk.jpg",
        "16-bit.png",
        "animated.gif",
        "orientation-8.jpg",
        "largest-allowed.png",
    ):
        assert str(folder / name) in caption_of
    for name in (
        "nothing.jpg",
        "bomb.png",
        "header-of-30000.png",
        "fifo.png",
        "loop.png",
        "jpg-cut-at-0.5.jpg",
    ):
        assert str(folder / name) not in caption_of
    assert most_mb < 2500
