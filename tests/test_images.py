import io

import numpy as np
import pytest
from PIL import Image

from onesteptrain.data.images import MAX_PIXELS, image_fingerprint, load_image
from onesteptrain.data.pool import ImageRef
from onesteptrain.errors import SampleError
from tests.pool_files import png


def ref(content):
    return ImageRef(content, "shown name")


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))


def test_a_file_and_its_bytes_give_the_same_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(NOISE))
    for source in (tmp_path / "a.png", encoded(NOISE)):
        assert np.array_equal(load_image(ref(source)), NOISE)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_comes_out_as_rgb(mode):
    image = NOISE.convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert np.array_equal(load_image(ref(encoded(image, kind))), image.convert("RGB"))


def test_an_image_is_turned_as_its_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    loaded = load_image(ref(encoded(NOISE, exif=exif)))
    assert np.array_equal(loaded, NOISE.transpose(Image.Transpose.ROTATE_270))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_an_image_that_is_cut_off_anywhere_is_refused(kind):
    content = encoded(NOISE, kind)
    for share in (0, 0.1, 0.5, 0.8):
        with pytest.raises(SampleError, match="'shown name'"):
            load_image(ref(content[: int(share * len(content))]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "no.png", "no such file (looked for"),
        (lambda folder: folder, "is a folder"),
        (lambda folder: b"<html>404</html>", "not an image in PNG, JPEG, "),
        (lambda folder: encoded(NOISE)[:900], "broken or cut off"),
    ],
)
def test_an_image_that_cannot_be_loaded_says_why(make, words, tmp_path):
    with pytest.raises(SampleError) as caught:
        load_image(ref(make(tmp_path)))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [10_000, 20_000])  # Pillow itself warns of the first and refuses the second
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side, monkeypatch):
    assert side * side > MAX_PIXELS
    head = bytearray(png(size=(1, 1)))
    head[16:24] = side.to_bytes(4, "big") * 2
    head[29:33] = __import__("zlib").crc32(head[12:29]).to_bytes(4, "big")
    Image.init()  # Pillow's own modules load an image when they are imported
    monkeypatch.setattr(Image.Image, "load", None)  # decoding would fail
    with pytest.raises(SampleError, match=r"more than 89,478,485; scale it down"):
        load_image(ref(bytes(head)))


def test_the_pixel_limit_is_a_limit_on_pixels():
    content = png(size=(20, 10))
    assert load_image(ref(content), max_pixels=200).size == (20, 10)
    with pytest.raises(SampleError, match="20 x 10 pixels, more than 199"):
        load_image(ref(content), max_pixels=199)


def test_the_fingerprint_is_of_pixels_and_size():
    same = image_fingerprint(ref(encoded(NOISE, "PNG")))
    assert same == image_fingerprint(ref(encoded(NOISE, "WEBP", lossless=True)))
    assert same != image_fingerprint(ref(encoded(NOISE, "JPEG")))
    assert image_fingerprint(ref(png(size=(4, 6)))) != image_fingerprint(ref(png(size=(6, 4))))
