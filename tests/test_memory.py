"""Pools in memory: a Dataset, a frame and a list of the same rows are read as the file of them is."""

from __future__ import annotations

import io
import pickle

import datasets
import numpy as np
import pandas
import pytest
from PIL import Image, ImageFile

from onesteptrain.data import Pool, Sample, Unreadable, open_pool, write_subset
from onesteptrain.data.images import image_bytes, load_image
from onesteptrain.errors import PoolError
from tests.pool_files import DIALOGUES, SCHEMAS, arrow_table, png, qa, write_json, write_parquet

KINDS = ["dataset", "frame", "list"]
SUFFIXES = [".json", ".jsonl", ".parquet", ""]


@pytest.fixture(autouse=True)
def without_bars():
    datasets.disable_progress_bars()


def in_memory(rows, kind):
    if kind == "dataset":
        return datasets.Dataset(arrow_table(rows))
    return pandas.DataFrame(rows) if kind == "frame" else rows


def photo(mode="RGB", size=(5, 4)):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    return image.convert(mode)


def contents(pool):
    """All that a score depends on, images by their pixels."""
    return [
        (row.uid, row.row, row.fields, row.turns, [load_image(ref).tobytes() for ref in row.images])
        if isinstance(row, Sample)
        else (row.uid, row.row)
        for row in pool
    ]


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", [True, False])
def test_the_same_rows_in_memory_and_in_a_file_give_the_same_samples(schema, kind, named, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png())
    rows = [SCHEMAS[schema](uid, images, turns) | {"level": 3} for uid, images, turns in DIALOGUES]
    if not named:
        rows = [{name: value for name, value in row.items() if name != "id"} for row in rows]
    write = write_parquet if kind == "dataset" else write_json
    file = open_pool(write(tmp_path / "pool", rows))
    pool = open_pool(in_memory(rows, kind), image_root=tmp_path)
    assert contents(pool) == contents(file)
    assert len(pool) == len(file)
    for start in range(4):
        assert list(pool.rows(start)) == list(file.rows(start))


def test_images_in_memory_are_those_of_files_and_are_decoded_when_needed(tmp_path, monkeypatch):
    image = photo()
    image.save(tmp_path / "a.png")
    stored = (tmp_path / "a.png").read_bytes()
    path = str(tmp_path / "a.png")
    given = ["a.png", stored, {"bytes": stored}, image, Image.open(path), {"path": path}]
    rows = [qa(id=str(number), images=[value]) for number, value in enumerate(given)]
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded early"))
    monkeypatch.setattr(Image.Image, "tobytes", lambda self: pytest.fail("decoded early"))
    pools = [open_pool(in_memory(rows, kind), image_root=tmp_path) for kind in ("list", "frame")]
    typed = datasets.Dataset.from_list([qa(id="0", images=[{"bytes": stored, "path": None}])])
    pools += [open_pool(typed.cast_column("images", datasets.List(datasets.Image(decode=d)))) for d in (True, False)]
    samples = [sample for pool in pools for sample in pool]
    monkeypatch.undo()
    assert len(samples) == 2 * len(given) + 2
    for sample in samples:
        assert load_image(sample.images[0]).tobytes() == image.tobytes()
        assert load_image(sample.images[0]).size == image.size


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_a_pillow_image_is_what_its_file_would_be(mode):
    (sample,) = open_pool([qa(images=[photo(mode)])])
    encoded = Image.open(io.BytesIO(image_bytes(sample.images[0])))
    assert load_image(sample.images[0]).tobytes() == encoded.convert("RGB").tobytes()


def test_a_pillow_image_is_turned_as_its_exif_says_and_is_part_of_the_uid():
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    photo().save(stream, "JPEG", exif=exif)
    shown = [stream.getvalue(), Image.open(stream), photo(), photo(), photo("L")]
    samples = list(open_pool([qa(images=[value]) for value in shown]))
    assert load_image(samples[0].images[0]).size == load_image(samples[1].images[0]).size == (4, 5)
    assert Image.open(io.BytesIO(image_bytes(samples[1].images[0]))).getexif()[0x0112] == 6
    assert samples[3].uid == f"{samples[2].uid}#2"
    assert len({sample.uid for sample in samples}) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_subset_is_of_the_same_kind(kind):
    source = in_memory([qa(f"Q{i}", id=str(i)) for i in range(7)], kind)
    pool = open_pool(source)
    some = pool.subset([1, 4])
    assert type(some.source) is type(source)
    assert [sample.uid for sample in some] == ["1", "4"]
    assert [sample.turns for sample in some] == [pool[1].turns, pool[4].turns]
    assert some.fingerprint != pool.fingerprint == open_pool(source).fingerprint
    assert len(pool.subset([])) == 0
    with pytest.raises(PoolError, match="row 7 is asked for, but the last row is 6"):
        pool.subset([1, 7])


def test_a_subset_of_a_file_is_in_memory(tmp_path):
    pool = open_pool(write_json(tmp_path / "pool.json", [qa(f"Q{i}", id=str(i), images=["a.png"]) for i in range(4)]))
    assert pool.source is None
    some = pool.subset([0, 3])
    assert [row["id"] for row in some.source] == ["0", "3"]
    assert [sample.turns for sample in some] == [pool[0].turns, pool[3].turns]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("shown", ["a.png", png(), photo()], ids=["path", "bytes", "pillow"])
def test_a_subset_is_written_by_the_suffix_and_reads_as_the_rows(kind, suffix, shown, tmp_path):
    if kind == "dataset" and isinstance(shown, Image.Image):
        shown = {"bytes": image_bytes(open_pool([qa(images=[shown])])[0].images[0]), "path": None}
    photo().save(tmp_path / "a.png")
    rows = [qa(f"Q{i}", id=str(i), images=[shown]) for i in range(5)]
    pool = open_pool(in_memory(rows, kind), image_root=tmp_path)
    out = tmp_path / f"out{suffix}"
    assert write_subset(pool, [0, 3, 4], out) == 3
    again = list(open_pool(out, image_root=tmp_path))
    assert [(row.uid, [turn.text for turn in row.turns]) for row in again] == [
        (pool[i].uid, [turn.text for turn in pool[i].turns]) for i in (0, 3, 4)
    ]
    assert all(load_image(row.images[0]).tobytes() == load_image(pool[0].images[0]).tobytes() for row in again)
    with pytest.raises(PoolError, match="row 5 is asked for, but the last row is 4"):
        write_subset(pool, [0, 5], tmp_path / f"more{suffix}")
    assert not (tmp_path / f"more{suffix}").exists()


def test_rows_in_memory_are_not_written_as_anything_else(tmp_path):
    with pytest.raises(PoolError, match=r"not written as \.csv; choose \.json"):
        write_subset(open_pool([qa()]), [0], tmp_path / "out.csv")


@pytest.mark.parametrize("kind", [*KINDS, "file"])
def test_a_pool_becomes_a_dataset_with_images(kind, tmp_path):
    photo().save(tmp_path / "a.png")
    rows = [qa("One?", id="0", image="a.png"), qa("Two?", id="1", image=["a.png"] * 2)]
    if kind == "dataset":
        pool = open_pool(datasets.Dataset(arrow_table(rows)), image_root=tmp_path)
    else:
        source = write_json(tmp_path / "pool.json", rows) if kind == "file" else in_memory(rows, kind)
        pool = open_pool(source, image_root=tmp_path)
    made = pool.to_dataset([1])
    assert isinstance(made, datasets.Dataset)
    assert made[0]["messages"] == rows[1]["messages"]
    if kind != "dataset":  # a Dataset stays as it stands
        assert [image.convert("RGB").tobytes() for image in made[0]["image"]] == [photo().tobytes()] * 2
    assert [sample.uid for sample in open_pool(pool.to_dataset(), image_root=tmp_path)] == ["0", "1"]


def test_parts_and_texts_that_json_mixes_fit_into_a_dataset():
    rows = [SCHEMAS["trl"](uid, [], turns) for uid, _, turns in DIALOGUES[2:]]
    rows += [qa([{"type": "text", "text": "Q"}], id="x"), qa("R", id="y")]
    pool = open_pool(rows)
    assert [row.turns for row in open_pool(pool.to_dataset())] == [row.turns for row in pool]
    with pytest.raises(PoolError, match="do not fit into typed columns"):
        open_pool([qa(level=1), qa(level="one")]).to_dataset()


def test_a_frame_has_no_value_where_it_is_missing():
    frame = pandas.DataFrame([qa(id="a", level=1, topic="t"), qa(id="b")])
    assert [sample.fields for sample in open_pool(frame)] == [{"level": 1.0, "topic": "t"}, {}]


def test_a_selection_of_a_dataset_is_read_in_its_own_order():
    dataset = datasets.Dataset(arrow_table([qa(f"Q{i}", id=str(i)) for i in range(200)])).select([150, 3, 77])
    assert [sample.uid for sample in open_pool(dataset)] == ["150", "3", "77"]


def test_rows_are_counted_and_taken_by_position(tmp_path):
    rows = [qa(f"Q{i}", id=str(i)) for i in range(5)]
    for pool in (open_pool(write_json(tmp_path / "pool.json", rows)), open_pool(rows)):
        assert len(pool) == 5
        assert pool[2].uid == pool[-3].uid == "2"
        assert [row.uid for row in pool[1:4]] == ["1", "2", "3"]
        assert [row.uid for row in pool[::-2]] == ["4", "2", "0"]
        assert pool[5:] == []
        with pytest.raises(IndexError):
            pool[5]


def test_a_pool_shows_itself_in_a_notebook(tmp_path):
    photo().save(tmp_path / "a.png")
    rows = [qa("<b>Q</b>", id="0", images=["a.png"]), qa(id="1", images=["gone.png"]), "no row", *[qa()] * 9]
    pool = open_pool(rows, image_root=tmp_path)
    assert repr(pool) == "Pool(list in memory)"
    shown = pool._repr_html_()
    assert "12 rows" in shown
    assert shown.count("<tr>") == 1 + 5
    assert "&lt;b&gt;Q&lt;/b&gt;" in shown
    assert shown.count('<img src="data:image/png;base64,') == 1
    assert "no such file" in shown
    assert "the row is a str" in shown


def test_a_row_that_cannot_be_used_has_a_reason_and_the_others_go_on():
    first, second, third = open_pool([qa(id="a"), 7, qa(id="b", images=[object()])])
    assert isinstance(first, Sample)
    assert isinstance(second, Unreadable)
    assert isinstance(third, Unreadable)
    assert second.reason == "list in memory row 1: the row is a int, not an object; mend or delete it"
    assert "an image is given as object" in third.reason


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (datasets.DatasetDict(train=datasets.Dataset.from_list([qa()])), "holds the splits train"),
        (datasets.Dataset.from_list([qa()]).to_iterable_dataset(), "not a datasets.IterableDataset"),
        ({"messages": []}, "not a builtins.dict"),
        ([], "holds no rows"),
        ([{"a": 1}], "hold no conversation"),
    ],
)
def test_what_is_no_pool_is_refused_in_one_line(source, words):
    with pytest.raises(PoolError, match=words) as error:
        open_pool(source)
    assert "\n" not in str(error.value)


def test_a_pool_in_memory_can_be_sent_to_another_process():
    pool = open_pool([qa(id="a", images=[photo()])])
    back = pickle.loads(pickle.dumps(pool))
    assert isinstance(back, Pool)
    assert contents(back) == contents(pool)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_characters_that_utf8_cannot_hold_survive_in_json(suffix, tmp_path):
    pool = open_pool([qa("Ö \ud83d?", id="a"), qa(id="b")])
    write_subset(pool, [0, 1], tmp_path / f"out{suffix}")
    again = open_pool(tmp_path / f"out{suffix}")
    assert [raw.value for raw in again.container.raw_rows()] == [raw.value for raw in pool.container.raw_rows()]
