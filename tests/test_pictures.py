"""Pictures as a viewer shows them, however the file keeps them, and which files are opened at all."""

import io

import numpy as np
import pytest
from PIL import Image

from onesteptrain.data.anchors import find_leaks
from onesteptrain.data.deduplication import FinalAnswers, guard
from onesteptrain.data.images import image_changes, image_fingerprint, load_image
from onesteptrain.data.pool import ImageRef, open_pool
from onesteptrain.errors import SampleError
from onesteptrain.jobs.steps import PoolOptions
from tests.pool_files import png, qa

DRAWN = [np.pad(np.ones((40, 6 + 8 * bar)), ((12, 12), (4 + 10 * bar, 86 - 18 * bar))) for bar in range(3)]
"""Drawings of 64 x 96, in 0 and 1: a bar that stands elsewhere and is wider each time."""


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def clear(drawing, colour, mode="RGBA"):
    """Ink of one colour that is opaque where the drawing is, on nothing."""
    ink = Image.new(mode, drawing.shape[::-1], colour)
    ink.putalpha(Image.fromarray((255 * drawing).astype(np.uint8)))
    return ink


KINDS = {
    "grey of 16 bits": lambda drawing: encoded(Image.fromarray((3000 + 37000 * drawing).astype(np.uint16))),
    "dark grey of 16 bits": lambda drawing: encoded(Image.fromarray((4095 * drawing).astype(np.uint16))),
    "whole numbers": lambda drawing: encoded(Image.fromarray((40000 * drawing).astype(np.int32)), "TIFF"),
    "floats to 1": lambda drawing: encoded(Image.fromarray(drawing.astype(np.float32)), "TIFF"),
    "floats": lambda drawing: encoded(Image.fromarray((900 * drawing - 300).astype(np.float32)), "TIFF"),
    "RGBA": lambda drawing: encoded(clear(drawing, "black")),
    "LA": lambda drawing: encoded(clear(drawing, 0, "L")),
    "palette": lambda drawing: encoded(clear(drawing, "navy").quantize(8)),
    "WebP": lambda drawing: encoded(clear(drawing, "black"), "WEBP", lossless=True),
    "CMYK": lambda drawing: encoded(Image.fromarray((255 * drawing).astype(np.uint8)).convert("CMYK"), "TIFF"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_drawing_is_seen_however_it_is_stored(kind):
    for drawing in DRAWN:
        shown = np.asarray(load_image(ImageRef(KINDS[kind](drawing), kind)).convert("L"), float)
        assert abs(np.corrcoef(shown.ravel(), drawing.ravel())[0, 1]) > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_different_drawings_are_neither_duplicates_nor_leaks_and_equal_ones_are(kind, tmp_path):
    rows = [
        {"id": str(row), **qa("How many bars?", f"{row}", image=KINDS[kind](drawing))}
        for row, drawing in enumerate([*DRAWN, DRAWN[0]])
    ]
    found = guard(open_pool(rows), finals=FinalAnswers(lambda text: text, lambda one, other: one == other))
    assert [(row.place.row, row.duplicate_of.row) for row in found.clusters.duplicates] == [(3, 0)]
    assert [leak.pool_row for leak in find_leaks(open_pool(rows[:1]), open_pool(rows[1:]))] == [2]


def test_16_bits_are_scaled_by_their_range_to_the_nearest_level():
    stored = np.random.default_rng(0).integers(0, 65536, (30, 20), dtype=np.uint16)
    shown = np.asarray(load_image(ImageRef(encoded(Image.fromarray(stored)), "x")), float)
    assert np.array_equal(shown, np.repeat(np.rint(stored / 65535 * 255)[..., None], 3, 2))


def test_transparency_is_laid_on_white():
    stored = np.random.default_rng(0).integers(0, 256, (1500, 900, 4), dtype=np.uint8)  # more than a strip
    shown = np.asarray(load_image(ImageRef(encoded(Image.fromarray(stored)), "x")), float)
    share = stored[..., 3:] / 255
    assert np.abs(shown - (share * stored[..., :3] + 255 * (1 - share))).max() <= 1  # Pillow rounds each product


@pytest.mark.parametrize(
    "content",
    [
        encoded(clear(DRAWN[0], "white")),
        encoded(Image.fromarray((100 * DRAWN[0]).astype(np.uint16))),
        encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"),
    ],
)
def test_a_picture_of_which_nothing_would_be_seen_is_refused(content):
    with pytest.raises(SampleError, match=r"on white|shown alike|no finite number"):
        load_image(ImageRef(content, "x"))


def test_a_picture_that_is_even_is_shown_as_it_is():
    for image in (Image.new("I;16", (4, 4), 70), Image.new("RGBA", (4, 4), (255, 255, 255, 0))):
        assert len(set(load_image(ImageRef(encoded(image), "x")).get_flattened_data())) == 1


def test_what_is_behind_a_transparent_picture_does_not_make_it_another():
    opaque = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    prints = [image_fingerprint(ImageRef(encoded(image), "x")) for image in (opaque, opaque.convert("RGBA"))]
    assert prints[0] == prints[1]


def test_the_first_frame_is_read():
    frames = [Image.fromarray((255 * drawing).astype(np.uint8)) for drawing in DRAWN]
    for kind in ("GIF", "WEBP", "PNG"):
        ref = ImageRef(encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True), "x")
        assert np.array_equal(np.asarray(load_image(ref).convert("L")) > 128, DRAWN[0] > 0)
        assert "have several frames, of which the first is read" in image_changes(ref)


def test_what_is_changed_is_said_once_with_the_number_of_pictures(tmp_path):
    (tmp_path / "wide.png").write_bytes(KINDS["grey of 16 bits"](DRAWN[0]))
    (tmp_path / "clear.png").write_bytes(KINDS["RGBA"](DRAWN[0]))
    (tmp_path / "also.png").write_bytes(KINDS["LA"](DRAWN[0]))
    (tmp_path / "plain.png").write_bytes(png())
    rows = [qa(image=f"{name}.png") for name in ("wide", "clear", "also", "plain", "wide", "none")]
    (tmp_path / "pool.jsonl").write_text("".join(f"{__import__('json').dumps(row)}\n" for row in rows))
    told = []
    PoolOptions().open_checked(tmp_path / "pool.jsonl", told.append)
    assert [line.partition(": ")[2].partition(";")[0] for line in told] == [
        "2 pictures may be transparent, and are shown on white",
        "1 pictures have more than 8 bits of grey, which are scaled to 8 bits",
    ]


def test_only_a_list_of_formats_is_opened():
    for content in (
        encoded(Image.new("RGB", (8, 8)), "EPS"),
        encoded(Image.new("RGB", (8, 8)), "PCX"),
        encoded(Image.new("RGB", (8, 8)), "PDF"),
    ):
        with pytest.raises(SampleError, match="not an image in PNG"):
            load_image(ImageRef(content, "x"))


OUTSIDE = {
    "absolute": lambda root: str(root.parent / "secret.png"),
    "steps up": lambda root: "../secret.png",
    "steps up and down": lambda root: "img/../../secret.png",
    "URI": lambda root: f"file://{root.parent}/secret.png",
    "escaped URI": lambda root: f"file://localhost{root}/%2e%2e/secret.png",
    "backslashes": lambda root: "..\\secret.png",
    "link": lambda root: "link.png",
    "folder behind a link": lambda root: "up/secret.png",
    "neighbour": lambda root: f"{root}2/secret.png",
}


@pytest.mark.parametrize("way", OUTSIDE)
def test_pictures_outside_the_image_root_are_refused_unless_allowed(way, tmp_path):
    root = tmp_path / "root"
    for folder in (root / "img", tmp_path / "root2"):
        folder.mkdir(parents=True)
    for place in (tmp_path, tmp_path / "root2"):
        (place / "secret.png").write_bytes(png())
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "up").symlink_to(tmp_path)
    rows = [qa(image=OUTSIDE[way](root))]
    (ref,) = open_pool(rows, image_root=root)[0].images
    with pytest.raises(SampleError, match=r"outside the image root .* --allow-outside"):
        load_image(ref)
    (ref,) = open_pool(rows, image_root=root, allow_outside=True)[0].images
    assert load_image(ref).size == load_image(ImageRef(png(), "x")).size


@pytest.mark.parametrize(
    "name", ["img/a.png", "./img/../img/a.png", "link/a.png", "{}/img/a.png", "file://{}/img/a.png"]
)
def test_pictures_inside_the_image_root_are_opened_whatever_way_leads_there(name, tmp_path):
    root = tmp_path / "root"
    (root / "img").mkdir(parents=True)
    (root / "img" / "a.png").write_bytes(png())
    (root / "link").symlink_to(root / "img")
    (tmp_path / "other").symlink_to(root)
    for place in (root, tmp_path / "other"):
        (ref,) = open_pool([qa(image=name.format(place))], image_root=place)[0].images
        load_image(ref)
