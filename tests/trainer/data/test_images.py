from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from trainer.data.images import (
    ImageFiles,
    ImageReadError,
    NoContrastError,
    _as_bgr,
    decode_image,
    load_resized,
    resized_shape,
)
from trainer.data.sampler import batch_canvas
from trainer.data.scan.image_header import read_header


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    """Red in the upper left quarter, blue elsewhere, BGR."""
    image = np.full((height, width, 3), (200, 30, 30), np.uint8)
    image[: height // 2, : width // 2] = (30, 30, 200)
    return image


def with_orientation(jpeg: bytes, orientation: int, order: str = "<") -> bytes:
    """A JPEG with an EXIF segment that holds nothing but the orientation."""
    mark = b"II" if order == "<" else b"MM"
    tiff = mark + struct.pack(order + "HIH", 42, 8, 1) + struct.pack(order + "HHIHHI", 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def png_with_orientation(png: bytes, orientation: int, *, late: bool = False) -> bytes:
    """A PNG with an eXIf chunk before its pixels, or after them."""
    body = b"MM" + struct.pack(">HIH", 42, 8, 1) + struct.pack(">HHIHHI", 0x0112, 3, 1, orientation, 0, 0)
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    at = len(png) - 12 if late else 33
    return png[:at] + chunk + png[at:]


def noise(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    """Random gray of low frequency, BGR."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def encode(suffix: str, image: np.ndarray) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def save(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_is_honoured(tmp_path, orientation, order):
    path = save(tmp_path / "x.jpg", with_orientation(encode(".jpg", picture()), orientation, order))
    image, header = decode_image(path), read_header(path)
    assert image.shape[:2] == ((60, 40) if orientation > 4 else (40, 60)) == (header.height, header.width)
    corner = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    y, x = (5 if side == 0 else size - 6 for side, size in zip(corner, image.shape, strict=False))
    assert image[y, x, 2] > 150 > image[y, x, 0]
    reduced, original_hw = load_resized(path, 30, training=True, shape_hw=image.shape[:2])
    assert reduced.shape[:2] == ((30, 20) if orientation > 4 else (20, 30))
    assert original_hw == image.shape[:2]


@pytest.mark.parametrize("late", [False, True])
def test_scan_and_decoder_agree_on_png_orientation(tmp_path, late):
    path = save(tmp_path / "x.png", png_with_orientation(encode(".png", picture()), 6, late=late))
    header = read_header(path)
    assert decode_image(path).shape[:2] == (header.height, header.width)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_keep_the_high_byte(tmp_path, suffix, channels):
    deep = np.random.default_rng(0).integers(0, 65536, (8, 9, channels), np.uint16)
    path = save(tmp_path / f"x{suffix}", encode(suffix, deep))
    image = decode_image(path)
    assert (image.dtype, image.shape) == (np.uint8, (8, 9, 3))
    assert np.abs(image.astype(int) - (deep[..., :3] >> 8).astype(int)).max() <= 1


def test_values_that_opencv_hands_over_as_they_are_become_bytes():
    deep = np.array([[0, 255, 256, 65535]], np.uint16)
    assert _as_bgr(deep)[0, :, 1].tolist() == [0, 0, 1, 255]
    assert _as_bgr(np.array([[0, 7, 255, 9]], np.int32))[0, :, 2].tolist() == [0, 7, 255, 9]
    assert _as_bgr(np.array([[np.nan, 0, 0.5, 1]], np.float64))[0, :, 0].tolist() == [0, 0, 128, 255]
    assert _as_bgr(np.array([[np.nan, 0, 0.5, 70]], np.float64))[0, :, 0].tolist() == [0, 0, 0, 70]
    assert _as_bgr(np.dstack((deep, deep))).shape == (1, 4, 3)


def test_gray_alpha_and_float(tmp_path):
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (8, 9), np.uint8)
    image = decode_image(save(tmp_path / "g.png", encode(".png", gray)))
    np.testing.assert_array_equal(image, np.dstack([gray] * 3))
    alpha = rng.integers(0, 256, (8, 9, 4), np.uint8)
    image = decode_image(save(tmp_path / "a.png", encode(".png", alpha)))
    np.testing.assert_array_equal(image, alpha[..., :3])
    for suffix in (".tiff", ".pfm"):
        floats = (np.arange(72, dtype=np.float32) / 71).reshape(8, 9)
        image = decode_image(save(tmp_path / f"f{suffix}", encode(suffix, floats)))
        np.testing.assert_allclose(image[..., 0], floats * 255, atol=0.51)


@pytest.mark.parametrize("suffix", [".bmp", ".jp2", ".png", ".ppm", ".ras", ".tiff", ".webp"])
def test_formats_are_sized_and_decoded(tmp_path, suffix):
    path = save(tmp_path / f"x{suffix}", encode(suffix, picture()))
    header = read_header(path)
    assert decode_image(path).shape == (header.height, header.width, 3) == (40, 60, 3)


def bad_files() -> dict[str, tuple[str, bytes]]:
    jpeg, png = encode(".jpg", picture(200, 300)), encode(".png", picture(200, 300))
    return {
        "empty": ("an empty file", b""),
        "html": ("web page", b"\n<!DOCTYPE html><html></html>"),
        "text": ("OpenCV can decode", b"404: Not Found"),
        "half jpeg": ("truncated JPEG", jpeg[: len(jpeg) // 2]),
        "jpeg less a row": ("truncated JPEG: pixels", encode(".jpg", noise(64, 64))[:-60]),
        "jpeg header": ("cut off", jpeg[:40]),
        "jpeg start": ("cut off", jpeg[:3]),
        "jpeg damaged": ("damaged header", jpeg[:2] + b"xx" + jpeg[4:]),
        "half png": ("truncated PNG", png[: len(png) // 2]),
        "png header": ("cut off", png[:20]),
    }


@pytest.mark.parametrize("kind", bad_files())
def test_bad_files_are_named(tmp_path, kind):
    why, content = bad_files()[kind]
    with pytest.raises(ImageReadError, match=why):
        read_header(save(tmp_path / "x.jpg", content))


def test_absent_files_are_named(tmp_path):
    for read in (read_header, decode_image):
        with pytest.raises(ImageReadError, match="No such file"):
            read(tmp_path / "none.jpg")


def test_whole_jpegs_with_something_after_the_end_or_a_long_header_are_whole(tmp_path):
    jpeg = encode(".jpg", picture(200, 300))
    comment = b"\xff\xfe" + struct.pack(">H", 60002) + b"\xff\xd9" * 30000
    for content in (
        jpeg + b"film" * 5000,
        jpeg + b"\0" * 9,
        jpeg[:2] + comment + jpeg[2:],
        jpeg[:2] + b"\xff" + jpeg[2:],
    ):
        header = read_header(save(tmp_path / "x.jpg", content))
        assert (header.height, header.width) == (200, 300)
    with pytest.raises(ImageReadError, match="truncated"):
        read_header(save(tmp_path / "x.jpg", (jpeg[:2] + comment + jpeg[2:])[:-900]))


def test_digests_tell_files_apart(tmp_path):
    image = picture(400, 400)
    other = image.copy()
    other[-1, 0] = 1  # bitmaps start with their last row
    digests = [read_header(save(tmp_path / "x.bmp", encode(".bmp", i))).digest for i in (image, image.copy(), other)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(("shape", "size", "expected"), [((480, 640), 320, (240, 320)), ((333, 500), 640, (427, 640))])
def test_long_side_becomes_the_image_size(tmp_path, shape, size, expected):
    assert resized_shape(shape, size) == expected
    path = save(tmp_path / "x.png", encode(".png", picture(*shape)))
    for training in (True, False):
        image, original_hw = load_resized(path, size, training=training, shape_hw=shape)
        assert (image.shape[:2], original_hw) == (expected, shape)


def test_validation_shrinks_by_area_and_training_may_decode_small(bccd):
    path, shape = bccd.paths[0], bccd.shapes_hw[0]
    whole = cv2.imread(str(path))
    area = cv2.resize(whole, (256, 192), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(load_resized(path, 256, training=False, shape_hw=shape)[0], area)
    half = cv2.imread(str(path), cv2.IMREAD_REDUCED_COLOR_2)
    linear = cv2.resize(half, (256, 192), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(load_resized(path, 256, training=True, shape_hw=shape)[0], linear)
    full = cv2.resize(whole, (330, 248), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(load_resized(path, 330, training=True, shape_hw=shape)[0], full)


def test_an_image_that_changed_or_broke_after_the_scan_is_gray(tmp_path, caplog):
    png = bytearray(encode(".png", np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)))
    png[len(png) // 2] ^= 0xFF
    paths = [save(tmp_path / "1.png", bytes(png)), save(tmp_path / "2.png", encode(".png", picture(60, 40)))]
    assert read_header(paths[0]).height == 40
    files = ImageFiles(paths, np.array([(40, 60), (40, 60)]), 60, training=True)
    for index in (0, 1, 1):
        loaded = files.load(index)
        assert not loaded.readable
        assert loaded.pixels.shape == (40, 60, 3)
        assert (loaded.pixels == 114).all()
    assert caplog.text.count("size changed after the scan") == 1


@pytest.mark.parametrize(("shape", "size"), [((87, 116), 640), ((600, 800), 896), ((147, 294), 320), ((273, 455), 320)])
def test_a_batch_of_one_shape_fits_its_canvas(shape, size):
    height, width = resized_shape(shape, size)
    rows, columns = batch_canvas([shape[0] / shape[1]], size, 32, 0.0)
    assert (height, width) == (shape[0] * size // shape[1], size)  # these divide
    assert rows >= height
    assert columns >= width


def test_an_image_with_more_pixels_than_opencv_takes_is_named(tmp_path):
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))]
    framed = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in [*chunks, (b"IEND", b"")]
    ]
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    with pytest.raises(ImageReadError, match="pixels"):
        decode_image(tmp_path / "huge.png")


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("cut", [1, 2])
def test_a_jpeg_that_lacks_nothing_but_its_end_is_used(tmp_path, cut, progressive):
    whole = cv2.imencode(".jpg", noise(200, 300), [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive])[1].tobytes()
    path = save(tmp_path / "x.jpg", whole[:-cut])
    header = read_header(path)
    assert (header.height, header.width, header.lacks_end) == (200, 300, True)
    assert not read_header(save(tmp_path / "y.jpg", whole)).lacks_end
    np.testing.assert_array_equal(decode_image(path), decode_image(tmp_path / "y.jpg"))
    half = load_resized(path, 150, training=True, shape_hw=(200, 300))[0]
    np.testing.assert_array_equal(half, load_resized(tmp_path / "y.jpg", 150, training=True, shape_hw=(200, 300))[0])


@pytest.mark.parametrize("missing", [*range(3, 60), 1000])
def test_a_jpeg_that_lacks_pixels_is_not(tmp_path, missing):
    content = encode(".jpg", noise(64, 96, seed=missing))
    cut = save(tmp_path / "x.jpg", content[:-missing])
    with pytest.raises(ImageReadError, match="pixels are missing"):
        read_header(cut)
    with pytest.raises(ImageReadError, match="pixels are missing"):
        decode_image(cut)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("cut", [1, 4, 12, 15, 18])
def test_a_png_that_has_all_its_pixels_is_used(tmp_path, cut, channels):
    image = np.random.default_rng(1).integers(0, 256, (30, 50, channels), np.uint8)
    content = encode(".png", image)
    path = save(tmp_path / "x.png", content[:-cut])
    header = read_header(path)
    assert (header.height, header.width, header.lacks_end) == (30, 50, True)
    np.testing.assert_array_equal(decode_image(path), decode_image(save(tmp_path / "y.png", content)))
    with pytest.raises(ImageReadError, match="truncated PNG: pixels"):
        read_header(save(tmp_path / "x.png", content[:-300]))


def test_what_follows_the_end_of_a_png_does_not_matter(tmp_path):
    header = read_header(save(tmp_path / "x.png", encode(".png", picture()) + b"film" * 20_000))
    assert (header.height, header.width, header.lacks_end) == (40, 60, False)


def deep_images() -> dict[str, tuple[np.ndarray, str]]:
    ramp = np.linspace(0, 1, 40 * 60, dtype=np.float32).reshape(40, 60)
    return {
        "unit": (ramp, ""),
        "bytes": (ramp * 255, ""),
        "bytes of three channels": (np.dstack([ramp * 255] * 3), ""),
        "overshoot": (np.where(ramp > 0.995, 1.04, ramp).astype(np.float32), ""),
        "kelvin": (ramp * 30 + 280, "float32 values from 280 to 310, 100% of them outside"),
        "negative": (ramp * 2 - 1, "outside 0 to 1 and 0 to 255"),
        "constant": (np.full_like(ramp, 0.5), "128 to 128 of 0 to 255"),
        "nothing": (np.full_like(ramp, np.nan), "0 to 0 of 0 to 255"),
        "tomography": ((ramp * 4000 - 1000).astype(np.int16), "int16 values from -1000 to 3000"),
        "twelve bits": ((ramp * 4095).astype(np.uint16), "0 to 15 of 0 to 255"),
        "sixteen bits": ((ramp * 65535).astype(np.uint16), ""),
        "whole numbers": ((ramp * 255).astype(np.int32), ""),
        "large numbers": ((ramp * 70_000).astype(np.int32), "int32 values from 0 to 70000"),
    }


@pytest.mark.parametrize("kind", deep_images())
def test_depths_are_read_by_rule_or_named(tmp_path, kind):
    image, why = deep_images()[kind]
    path = save(tmp_path / "x.tiff", encode(".tiff", image))
    if why:
        for read in (read_header, decode_image):
            with pytest.raises(NoContrastError, match=why):
                read(path)
        return
    assert read_header(path).height == 40
    ramp = np.linspace(0, 255, 40 * 60).reshape(40, 60)
    assert np.abs(decode_image(path)[..., 1] - ramp).max() <= 1.6


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_an_image_of_one_color_is_named(tmp_path, suffix):
    with pytest.raises(NoContrastError, match=r"every pixel is \(255, 255, 25[45]\)"):
        read_header(save(tmp_path / f"x{suffix}", encode(suffix, np.full((200, 300, 3), 255, np.uint8))))
    dot = np.full((200, 300, 3), 255, np.uint8)
    dot[90:110, 90:110] = 0
    assert read_header(save(tmp_path / f"x{suffix}", encode(suffix, dot))).height == 200


def pillow(image: np.ndarray, suffix: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[..., ::-1]).save(file, suffix, **options)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["TIFF", "AVIF", "WEBP"])
def test_orientation_of_other_formats_is_honored(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"x.{kind.lower()}", pillow(picture(), kind, exif=exif))
    image, header = decode_image(path), read_header(path)
    assert image.shape[:2] == ((60, 40) if orientation > 4 else (40, 60)) == (header.height, header.width)
    corner = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    y, x = (5 if side == 0 else size - 6 for side, size in zip(corner, image.shape, strict=False))
    assert image[y, x, 2] > 150 > image[y, x, 0]


@pytest.mark.parametrize(("kind", "more"), [("GIF", {}), ("TIFF", {}), ("PNG", {}), ("WEBP", {}), ("AVIF", {})])
def test_further_frames_are_noticed(tmp_path, kind, more):
    frames = {"save_all": True, "append_images": [Image.fromarray(noise())], **more}
    assert read_header(save(tmp_path / "many", pillow(picture(), kind, **frames))).has_more_frames
    assert not read_header(save(tmp_path / "one", pillow(picture(), kind))).has_more_frames


def test_names_that_are_not_utf8_are_read(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))
    path.write_bytes(encode(".jpg", picture()))
    assert read_header(path).height == 40
    assert decode_image(path).shape == (40, 60, 3)
    assert load_resized(path, 30, training=True, shape_hw=(40, 60))[0].shape == (20, 30, 3)
