import io
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from captioner.config import GridConfig, PreprocessConfig
from captioner.errors import ImageError
from captioner.images.formats import PICTURE_SUFFIXES, PILLOW_SUFFIXES
from captioner.images.geometry import Preprocess, heatmap
from captioner.images.reading import load_image, load_opened
from captioner.images.sources import ZipMember
from tests.conftest import noise_picture

RED, GREEN = (250, 10, 10), (10, 250, 10)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    picture = noise_picture(0).convert("L").convert(mode) if mode != "I;16" else sixteen_bit(1000)
    # Pillow 12.3 does not read the uncompressed YCbCr TIFF that it writes.
    suffix = "jpg" if mode == "YCbCr" else "tiff"
    image = load_image(save(picture, tmp_path / f"picture.{suffix}"))
    assert image.mode == "RGB"
    assert image.size == picture.size


def sixteen_bit(level: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), level, dtype=np.uint16))


@pytest.mark.parametrize(("level", "expected"), [(7, 7), (257 * 100, 100), (65_535, 255)])
def test_32_bit_levels_are_taken_as_8_or_16_bit_if_they_fit(
    level: int, expected: int, tmp_path: Path
) -> None:
    picture = Image.fromarray(np.full((8, 8), level, dtype=np.int32))
    assert picture.mode == "I"
    image = load_image(save(picture, tmp_path / "wide.tiff"))
    assert np.asarray(image).min() == np.asarray(image).max() == expected


@pytest.mark.parametrize(("level", "expected"), [(0, 0), (257 * 100, 100), (65_535, 255)])
def test_16_bit_levels_are_scaled_not_clipped(level: int, expected: int, tmp_path: Path) -> None:
    image = load_image(save(sixteen_bit(level), tmp_path / "deep.png"))
    assert np.asarray(image).min() == np.asarray(image).max() == expected


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert load_image(save(picture, tmp_path / "clear.png")).getpixel((0, 0)) == (255, 255, 255)


def test_palette_transparency_becomes_white(tmp_path: Path) -> None:
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    path = save(picture, tmp_path / "palette.png", transparency=0)
    assert load_image(path).getpixel((0, 0)) == (255, 255, 255)


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    path = save(frames[0], tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    red, green, _ = load_image(path).getpixel((0, 0))
    assert red > 200 > 50 > green


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(orientation: int, tmp_path: Path) -> None:
    """Each orientation undoes a known rotation of the upright picture."""
    upright = Image.new("RGB", (40, 20), GREEN)
    upright.paste(RED, (0, 0, 10, 10))  # a red corner, top left
    turn = Image.Transpose
    stored_as = {
        1: [],
        2: [turn.FLIP_LEFT_RIGHT],
        3: [turn.ROTATE_180],
        4: [turn.FLIP_TOP_BOTTOM],
        5: [turn.TRANSPOSE],
        6: [turn.ROTATE_90],
        7: [turn.TRANSVERSE],
        8: [turn.ROTATE_270],
    }
    stored = upright
    for transposition in stored_as[orientation]:
        stored = stored.transpose(transposition)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(save(stored, tmp_path / "turned.png", exif=exif))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(upright))


def test_picture_in_a_zip_is_read_without_unpacking(tmp_path: Path) -> None:
    plain = save(noise_picture(1), tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(plain, "folder/a.png")
    inside = ZipMember(tmp_path / "all.zip", "folder/a.png")
    np.testing.assert_array_equal(np.asarray(load_image(inside)), np.asarray(load_image(plain)))


def test_damaged_member_of_a_zip_is_an_image_error(tmp_path: Path) -> None:
    plain = save(noise_picture(1), tmp_path / "a.bmp")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(plain, "a.bmp")
    damaged = bytearray((tmp_path / "all.zip").read_bytes())
    damaged[1000] ^= 0xFF
    (tmp_path / "all.zip").write_bytes(damaged)
    with pytest.raises(ImageError, match=r"damaged or truncated \(Bad CRC-32 "):
        load_image(ZipMember(tmp_path / "all.zip", "a.bmp"))


def test_large_jpeg_is_decoded_at_reduced_size_and_looks_nearly_the_same(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    noise_picture(1, width=1600, height=1200).save(path, quality=95)
    fast = load_image(path, enough_px=96)
    assert fast.size == (400, 300)  # a quarter: an eighth would be under twice 96 on the short side
    assert load_image(path, enough_px=2000).size == (1600, 1200)
    whole = np.asarray(load_image(path).resize((96, 96), Image.Resampling.BICUBIC), dtype=float)
    shrunk = np.asarray(fast.resize((96, 96), Image.Resampling.BICUBIC), dtype=float)
    assert np.abs(whole - shrunk).mean() < 3  # of 255


def test_other_formats_keep_their_size_however_little_is_enough(tmp_path: Path) -> None:
    assert load_image(save(noise_picture(1, 400, 300), tmp_path / "a.png"), enough_px=10).size == (400, 300)


def test_missing_empty_and_wrong_files_are_reported_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("this is no picture")
    for path, reason in [
        (tmp_path / "missing.jpg", "no such file"),
        (tmp_path, "is not a file"),
        (tmp_path / "empty.jpg", "the file is empty"),
        (tmp_path / "text.jpg", "not a picture"),
    ]:
        with pytest.raises(ImageError, match=reason) as error:
            load_image(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("picture_format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000"])
def test_truncated_pictures_are_refused_wherever_they_end(picture_format: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise_picture(2, 200, 150).save(buffer, picture_format)
    whole = buffer.getvalue()
    for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9):
        path = tmp_path / "cut.bin"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError):
            load_image(path)


def test_picture_with_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captioner.images.reading.MAX_PIXELS", 1999)
    with pytest.raises(ImageError, match="50 x 40 pixels exceed the 1,999 allowed"):
        load_image(save(noise_picture(3), tmp_path / "large.png"))


def test_preprocess_squashes_the_whole_picture(preprocess_config: PreprocessConfig) -> None:
    image = Image.new("RGB", (30, 70), (255, 0, 128))
    image.paste((0, 255, 0), (0, 35, 30, 70))
    array = Preprocess(preprocess_config)(image)
    assert array.shape == (96, 96, 3)
    assert array[5, 5].tolist() == array[40, 90].tolist() == [255, 0, 128]
    assert array[55, 5].tolist() == array[90, 90].tolist() == [0, 255, 0]


SIZES = [(96, 96), (300, 100), (64, 480), (97, 31)]


@pytest.mark.parametrize("image_size", SIZES)
@pytest.mark.parametrize("is_smooth", [True, False])
def test_hot_cell_lands_on_its_own_pixels(
    image_size: tuple[int, int],
    is_smooth: bool,
    even_grid: GridConfig,
    preprocess_config: PreprocessConfig,
) -> None:
    width, height = image_size
    for row in range(3):
        for col in range(3):
            alpha = np.zeros((3, 3))
            alpha[row, col] = 1.0
            heat = heatmap(
                alpha,
                grid=even_grid,
                preprocess=preprocess_config,
                image_size=image_size,
                is_smooth=is_smooth,
            )
            assert heat.shape == (height, width)
            y, x = np.unravel_index(heat.argmax(), heat.shape)
            assert col * width / 3 <= x + 0.5 <= (col + 1) * width / 3
            assert row * height / 3 <= y + 0.5 <= (row + 1) * height / 3


@pytest.mark.parametrize("offset_px", [3.0, 15.5, 31.0])
def test_cells_are_centred_on_their_receptive_fields(
    offset_px: float, preprocess_config: PreprocessConfig
) -> None:
    """With uneven padding the outer cells reach to the border, and inner ones keep their stride."""
    grid = GridConfig(rows=3, cols=3, stride_px=32, offset_px=offset_px)
    boxes = []
    for alpha in np.eye(3):  # each cell of the first row
        heat = heatmap(
            np.stack([alpha, 0 * alpha, 0 * alpha]),
            grid=grid,
            preprocess=preprocess_config,
            image_size=(960, 96),
            is_smooth=False,
        )
        (columns,) = heat[0].nonzero()
        boxes.append((columns[0], columns[-1] + 1))
    assert boxes[0][0] == 0
    assert boxes[2][1] == 960
    assert boxes[1][0] == pytest.approx(10 * (offset_px + 0.5 + 16))
    assert boxes[1][1] - boxes[1][0] == pytest.approx(320)


def heat_of(alpha: np.ndarray, grid: GridConfig, preprocess: PreprocessConfig) -> np.ndarray:
    return heatmap(alpha, grid=grid, preprocess=preprocess, image_size=(960, 480))


@pytest.mark.parametrize("offset_px", [3.0, 15.5, 31.0])
@pytest.mark.parametrize("receptive_field_std_px", [4.0, 30.0, 200.0])
def test_uniform_attention_is_uniform_heat(
    offset_px: float, receptive_field_std_px: float, preprocess_config: PreprocessConfig
) -> None:
    """However far a cell sees, and wherever the cells lie, up to the border."""
    grid = GridConfig(
        rows=3, cols=3, stride_px=32, offset_px=offset_px, receptive_field_std_px=receptive_field_std_px
    )
    np.testing.assert_allclose(heat_of(np.full((3, 3), 1 / 9), grid, preprocess_config), 1 / 9)
    raw = heatmap(
        np.full((3, 3), 1 / 9), grid=grid, preprocess=preprocess_config, image_size=(50, 70), is_smooth=False
    )
    np.testing.assert_allclose(raw, 1 / 9)


def test_a_pixel_has_the_mean_of_the_cells_that_see_it(preprocess_config: PreprocessConfig) -> None:
    """Of two columns, one hot: at the middle between them half, and by Gaussians elsewhere."""
    grid = GridConfig(rows=2, cols=2, stride_px=48, offset_px=23.5, receptive_field_std_px=20.0)
    heat = heat_of(np.array([[1.0, 0.0], [1.0, 0.0]]), grid, preprocess_config)  # 960 x 480 from 96 x 96
    x = (np.arange(960) + 0.5) / 10
    hot, cold = (np.exp(-0.5 * ((x - centre) / 20) ** 2) for centre in (24, 72))
    np.testing.assert_allclose(heat, np.broadcast_to(hot / (hot + cold), (480, 960)))


def test_a_supervised_cell_stands_for_the_part_closest_to_it(preprocess_config: PreprocessConfig) -> None:
    """However far it sees, its attention is spread by half a stride; otherwise, by as far as it sees."""
    grid = GridConfig(rows=2, cols=2, stride_px=48, offset_px=23.5, receptive_field_std_px=70.0)
    left = np.array([[1.0, 0.0], [1.0, 0.0]])
    for is_supervised, deviation in ((True, 24.0), (False, 70.0)):
        heat = heat_of(left, replace(grid, is_supervised=is_supervised), preprocess_config)
        np.testing.assert_array_equal(
            heat, heat_of(left, replace(grid, receptive_field_std_px=deviation), preprocess_config)
        )


def test_raw_cells_have_exactly_their_alpha(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    alpha = np.arange(9.0).reshape(3, 3)
    heat = heatmap(alpha, grid=even_grid, preprocess=preprocess_config, image_size=(6, 3), is_smooth=False)
    np.testing.assert_array_equal(heat, alpha.repeat(2, axis=1))


def profile_with_swapped_primaries() -> bytes:
    """sRGB with the names of red's and green's tags swapped: red is meant where the picture says green."""
    content = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for one, other in ((b"rXYZ", b"????"), (b"gXYZ", b"rXYZ"), (b"????", b"gXYZ")):
        content = content.replace(one, other, 1)
    return content


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_those_that_the_embedded_profile_means(mode: str, tmp_path: Path) -> None:
    limited = noise_picture(0).convert("RGB").quantize(16)
    picture = limited.convert("RGB")
    stored = limited if mode == "P" else picture.convert(mode)
    path = save(stored, tmp_path / "p.png", icc_profile=profile_with_swapped_primaries())
    red, green, blue = picture.split()
    meant = np.asarray(Image.merge("RGB", (green, red, blue)), dtype=int)
    assert np.abs(np.asarray(load_image(path), dtype=int) - meant).max() <= 2


@pytest.mark.parametrize("kind", ["sRGB", "damaged", "of another kind of picture"])
def test_profile_that_changes_nothing_leaves_the_pixels_alone(kind: str, tmp_path: Path) -> None:
    picture, profile = noise_picture(0).convert("RGB"), profile_with_swapped_primaries()
    if kind == "sRGB":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    elif kind == "damaged":
        profile = profile[:300]
    else:
        picture = picture.convert("CMYK")
    path = save(picture, tmp_path / "p.tif", icc_profile=profile)
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(picture.convert("RGB")))


def test_every_suffix_that_pillow_reads_counts_as_a_picture() -> None:
    Image.init()
    readable = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    documents = {".eps", ".ps", ".wmf", ".emf"}  # Pillow needs other programs
    not_pictures = {
        ".bufr",
        ".grib",
        ".h5",
        ".hdf",
        ".mpg",
        ".mpeg",
        ".iim",
    }  # Pillow only tells what they are
    of_programs = {".blp", ".ftc", ".ftu", ".gbr", ".im", ".pxr"}  # of games and editors
    plugins = set(PICTURE_SUFFIXES) - set(PILLOW_SUFFIXES)
    assert readable - documents - not_pictures - of_programs - plugins | {".mpo"} == set(PILLOW_SUFFIXES)


@pytest.mark.parametrize(("module", "suffix"), [("pillow_heif", "heic"), ("pillow_jxl", "jxl")])
def test_formats_of_plugins_are_read_where_those_are_installed(
    module: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = pytest.importorskip(module)
    if module == "pillow_heif":
        plugin.register_heif_opener()
    picture = Image.new("RGB", (64, 48), RED)
    path = save(picture, tmp_path / f"photo.{suffix}")
    image = load_image(path)
    assert image.size == (64, 48)
    assert np.abs(np.asarray(image, dtype=int) - RED).max() < 16
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImageError, match=rf"needs a plugin; install it with: pip install 'captioner\[{suffix}\]'"
    ):
        load_image(path)


def test_camera_raw_is_refused_rather_than_its_thumbnail_read(tmp_path: Path) -> None:
    path = save(noise_picture(0), tmp_path / "photo.tif").rename(tmp_path / "photo.NEF")
    with pytest.raises(ImageError, match="camera raw cannot be read; export it as JPEG"):
        load_image(path)


def test_jpeg_that_is_decoded_smaller_may_be_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.images.reading.MAX_PIXELS", 100 * 100)
    path = save(noise_picture(0).resize((400, 300)), tmp_path / "phone.jpg")
    assert load_image(path, enough_px=35).size == (100, 75)
    with pytest.raises(ImageError, match="400 x 300 pixels exceed the 10,000 allowed"):
        load_image(path)
    progressive = save(noise_picture(0).resize((400, 300)), tmp_path / "web.jpg", progressive=True)
    with pytest.raises(ImageError, match="400 x 300 pixels exceed the 10,000 allowed"):
        load_image(progressive, enough_px=35)
    monkeypatch.setattr("captioner.images.reading.MAX_JPEG_PIXELS", 300 * 300)
    with pytest.raises(ImageError, match="400 x 300 pixels exceed the 90,000 allowed"):
        load_image(path, enough_px=35)


def test_png_with_megabytes_of_text_is_read(tmp_path: Path) -> None:
    information = PngInfo()
    information.add_text("workflow", "nodes " * 500_000, zip=True)
    assert load_image(save(noise_picture(0), tmp_path / "p.png", pnginfo=information)).mode == "RGB"


def test_very_large_picture_is_shrunk_before_it_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captioner.images.reading._SHRINK_ABOVE", 1_000)
    path = save(Image.new("RGB", (400, 900), GREEN), tmp_path / "large.png")
    assert load_image(path, enough_px=50).size == (100, 225)
    assert load_image(path).size == (400, 900)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "tif", "png", "webp"])
def test_every_orientation_becomes_upright_in_every_format(
    orientation: int, suffix: str, tmp_path: Path
) -> None:
    """The upper left of the stored picture is red, the rest green; EXIF 2.3 says where it belongs."""
    stored = Image.new("RGB", (64, 32), GREEN)
    stored.paste(RED, (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {0x0112: orientation}} if suffix == "tif" else {"exif": exif.tobytes()}
    image = load_image(save(stored, tmp_path / f"p.{suffix}", quality=95, **options))
    is_turned = orientation >= 5
    assert image.size == ((32, 64) if is_turned else (64, 32))
    right = orientation in (2, 3, 6, 7)
    low = orientation in (3, 4, 7, 8)
    centre = (image.width * (3 if right else 1) // 4, image.height * (3 if low else 1) // 4)
    assert image.getpixel(centre)[0] > 200


def test_transparency_is_that_of_the_stored_colours(tmp_path: Path) -> None:
    """The transparent colour is compared before colours are converted by a profile, and levels to 8 bits."""
    picture = Image.new("RGB", (8, 4), GREEN)
    picture.paste(RED, (0, 0, 4, 4))
    path = save(picture, tmp_path / "p.png", transparency=RED, icc_profile=profile_with_swapped_primaries())
    image = load_image(path)
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((7, 0))[0] > 200  # green means red
    deep = Image.fromarray(np.array([[1000, 60_000]], dtype=np.uint16))
    image = load_image(save(deep, tmp_path / "deep.png", transparency=1000))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, (round(60_000 / 257),) * 3]


def test_malformed_exif_data_are_ignored(tmp_path: Path) -> None:
    path = save(noise_picture(0), tmp_path / "p.png", exif=b"Exif\0\0garbagegarbage")
    assert load_image(path).size == noise_picture(0).size


def test_opened_picture_is_not_the_callers_own() -> None:
    opened = noise_picture(0)
    assert opened.mode == "RGB"
    load_opened(opened).paste("black", (0, 0, *opened.size))
    np.testing.assert_array_equal(opened, noise_picture(0))


def test_opened_pictures_have_the_same_errors(tmp_path: Path) -> None:
    path = save(noise_picture(0), tmp_path / "p.png")
    path.write_bytes(path.read_bytes()[:-40])
    with Image.open(path) as image, pytest.raises(ImageError, match=r"p\.png: damaged or truncated"):
        load_opened(image)
    with pytest.raises(ImageError, match="it has no pixels"):
        load_opened(Image.new("RGB", (0, 0)))
