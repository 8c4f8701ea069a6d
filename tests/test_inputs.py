"""What docs/inputs.md says of rows, and what it cannot show: mixed pools, encodings, files, runs."""

import base64
import json
import random
import re
import unicodedata
from pathlib import Path

import pytest
import torch

from onesteptrain.data.images import image_bytes, load_image
from onesteptrain.data.pool import ImageRef, Sample, Unreadable, open_pool, write_subset
from onesteptrain.errors import RunError, SampleError, one_line
from onesteptrain.evaluation import read_benchmark
from onesteptrain.proxy import LoadOptions, load_proxy
from onesteptrain.storage.score_table import read_scores
from tests.building import checkpoint, png
from tests.commands import done, world
from tests.pool_files import qa, write_jsonl

PAGE = (Path(__file__).parents[1] / "docs" / "inputs.md").read_text(encoding="utf-8")
BLOCKS = [
    (name, tuple(columns.split()), body.splitlines())
    for name, columns, body in re.findall(r"^```jsonl (\w+) ?([^\n]*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
]
SAME = [(columns, [json.loads(line) for line in lines]) for name, columns, lines in BLOCKS if name == "same"]


def annotated(kind):
    """Rows of the page, each with the words that stand under it."""
    lines = [line for name, _, body in BLOCKS for line in body if name == kind]
    return [(json.loads(row), words.removeprefix("// ")) for row, words in zip(lines[::2], lines[1::2], strict=True)]


def read(row, **options):
    (found,) = open_pool([qa(), row], **options).rows(1)
    return found


def conversation(sample):
    """Roles, texts and sources of pictures; how messages call a picture may differ."""
    assert isinstance(sample, Sample), sample
    return [
        (turn.role, [part.source if isinstance(part, ImageRef) else part for part in turn.parts])
        for turn in sample.turns
    ]


@pytest.mark.parametrize(("columns", "rows"), SAME, ids=range(len(SAME)))
def test_rows_of_one_block_of_the_page_read_alike(columns, rows):
    first, *others = (conversation(read(row, image_column=columns)) for row in rows)
    assert others
    assert [other == first for other in others] == [True] * len(others)


@pytest.mark.parametrize(("row", "words"), annotated("refused"), ids=lambda value: value if value is str else None)
def test_a_row_that_the_page_refuses_has_the_reason_that_it_says(row, words):
    found = read(row)
    assert isinstance(found, Unreadable)
    assert words in found.reason
    assert found.reason.startswith("list in memory row 1: ")
    assert found.reason.isprintable()


@pytest.mark.parametrize(("row", "words"), annotated("unread"), ids=lambda value: value if value is str else None)
def test_a_row_that_seems_to_have_a_picture_says_where(row, words):
    found = read(row)
    assert isinstance(found, Sample)
    assert (found.images, found.unread) == ((), words)


def test_rows_that_read_alike_are_encoded_alike(tmp_path):
    for number, name in enumerate("abc"):
        (tmp_path / f"{name}.png").write_bytes(png(number))
    encoder = load_proxy(checkpoint(), options=LoadOptions(max_tokens=4096)).encoder
    for columns, rows in SAME:
        if "data:" in json.dumps(rows):
            continue
        first, *others = (encoder.encode(read(row, image_column=columns, image_root=tmp_path)) for row in rows)
        for other in others:
            assert torch.equal(other.answer, first.answer)
            assert other.inputs.keys() == first.inputs.keys()
            assert all(torch.equal(other.inputs[name], first.inputs[name]) for name in first.inputs)


@pytest.mark.parametrize("seed", range(4))
def test_a_row_reads_the_same_whatever_stands_around_it(seed, tmp_path):
    rows = [row for columns, rows in SAME for row in rows if not columns]
    rows += [row for kind in ("refused", "unread") for row, _ in annotated(kind)]
    rows = [row | {"id": number} for number, row in enumerate(rows)]
    alone = {str(row["id"]): read(row) for row in rows}
    mixed = random.Random(seed).sample(rows, len(rows))
    path = write_jsonl(tmp_path / "pool.jsonl", mixed)
    pool = open_pool(path, image_root=Path())
    for found in pool:
        other = alone[found.uid]
        if isinstance(found, Unreadable):
            assert found.reason.partition(": ")[2] == other.reason.partition(": ")[2]
        else:
            assert (found.turns, found.fields, found.unread) == (other.turns, other.fields, other.unread)
    kept = sorted(random.Random(seed).sample(range(len(rows)), 20))
    write_subset(pool, kept, tmp_path / "out.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    assert (tmp_path / "out.jsonl").read_bytes() == b"".join(lines[row] for row in kept)


MARKS = [
    "<IMAGE>",
    "<Image/>",
    "<ImageHere>",
    "<image_1>",
    "<image1>",
    "<image-1>",
    "<image 0>",
    "<|image_1|>",
    "<|image|>",
    "<|image_pad|>",
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|begin_of_image|><|image|><|end_of_image|>",
    "<img><IMG_CONTEXT></img>",
    "<img></img>",
    "<img>",
    "<image_placeholder>",
    "<start_of_image>",
    "<image_soft_token>",
    "[IMG]",
    "[image 1]",
    "{image}",
    "&lt;image&gt;",
    "<pic_0>",
    "<image-placeholder>",
    "<im_start><im_patch><im_patch><im_end>",
    "<img>a.png</img>",
    "![a chart](a.png)",
    '![](<a.png> "title")',
]


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_of_another_kind_is_a_place_in_questions_and_words_in_answers(mark):
    plain = read(qa("Look: <image> Well?", "As said.", image="a.png"))
    assert conversation(read(qa(f"Look: {mark} Well?", "As said.", image="a.png"))) == conversation(plain)
    answered = read(qa("Well?", f"See {mark}.", image="a.png"))
    assert conversation(answered)[1] == ("assistant", [f"See {mark}."])
    beside = read(qa(f"Look: <image> Well, {mark}?", "As said.", image="a.png"))
    assert conversation(beside)[0][1][2] == f" Well, {mark}?"


@pytest.mark.parametrize("mark", [mark for mark in MARKS if mark[0] != "!"])
def test_a_mark_without_a_picture_is_a_reason_or_is_said(mark):
    found = read(qa(f"Look: {mark} Well?"))
    if "a.png" in mark:
        assert len(found.images) == 1
    elif isinstance(found, Unreadable):
        assert "1 image placeholder but 0 images" in found.reason
    else:
        assert found.unread == "the text"


def test_markdown_in_code_and_of_other_files_is_text():
    for text in ("Is `![x](a.png)` right?", "```\n![x](a.png)\n```", "![x](notes.md)"):
        assert conversation(read(qa(text)))[0] == ("user", [text])


def test_a_newline_beside_a_mark_of_another_kind_belongs_to_it_in_llava_rows():
    said = [{"from": "human", "value": "<IMAGE>\nWhat?\n"}, {"from": "gpt", "value": "A"}]
    assert conversation(read({"conversations": said, "image": "a.png"}))[0][1][1:] == ["What?\n"]


REFERENCES = [
    ".\\img\\a b.png",
    " img/a b.png ",
    "img/ a b.png",
    "file://{folder}/img/a%20b.png",
    "FILE://localhost{folder}/img/a%20b.png",
    "file:{folder}/img/a b.png",
    " file://{folder}/img/a%20b.png",
    "img/a%20b.png",
    "img\\a%20b.png",
]


@pytest.mark.parametrize("written", REFERENCES)
def test_a_picture_is_found_by_another_spelling_of_its_name(written, tmp_path):
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "a b.png").write_bytes(png(1))
    (ref,) = read(qa(image=written.format(folder=tmp_path)), image_root=tmp_path).images
    assert load_image(ref).size == (48, 32)
    assert image_bytes(ref) == png(1)


def test_space_before_a_data_uri_or_a_url_changes_nothing():
    uri = "data:image/png;base64," + base64.b64encode(png(1)).decode()
    assert read(qa(image=f"\n {uri}")).images == read(qa(image=uri)).images
    assert "is not on this machine" in read(qa(image=" https://example.org/a.png")).reason


@pytest.mark.parametrize(("on_disk", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_are_found_in_both_ways_of_unicode(on_disk, written, tmp_path):
    (tmp_path / unicodedata.normalize(on_disk, "café.png")).write_bytes(png(1))
    (ref,) = read(qa(image=unicodedata.normalize(written, "café.png")), image_root=tmp_path).images
    assert load_image(ref).size == (48, 32)


def test_what_stands_in_the_file_system_wins_over_other_spellings(tmp_path):
    (tmp_path / "50%25.png").write_bytes(png(1))
    (tmp_path / "50%.png").write_bytes(png(2))
    (ref,) = read(qa(image="50%25.png"), image_root=tmp_path).images
    assert image_bytes(ref) == png(1)
    (ref,) = read(qa(image=f"file://{tmp_path}/50%25.png"), image_root=tmp_path).images
    assert image_bytes(ref) == png(2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x" * 300 + ".png", "File name too long"),
        ("x" * 5000 + ".png", "File name too long"),
        ("a\0.png", "no such file"),
        ("\ud83d.png", "no such file"),
        ("loop.png", "a link that leads nowhere"),
        ("~/a.png", "no such file"),
    ],
)
def test_a_name_that_no_file_has_is_a_reason_in_one_short_line(name, words, tmp_path):
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (ref,) = read(qa(image=name), image_root=tmp_path).images
    with pytest.raises(SampleError, match=words) as caught:
        load_image(ref)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 1005


def test_a_text_of_an_error_is_one_printable_line_of_bounded_length():
    assert one_line("a\nb\ud800\x1b[31m") == "a b\\ud800\\x1b[31m"
    assert str(SampleError("\x07bell")) == "\\x07bell"
    assert str(RunError("a\nb")) == "a b"
    assert len(one_line("a" * 10_000 + "remedy")) == 1005
    assert one_line("a" * 10_000 + "remedy").endswith("remedy")


def test_a_row_that_is_nested_too_deeply_is_a_reason(tmp_path):
    image = "a.png"
    for _ in range(600):
        image = {"image": image}
    found = list(open_pool(write_jsonl(tmp_path / "pool.jsonl", [qa("1"), qa(image=image), qa("2")])))
    assert [isinstance(row, Sample) for row in found] == [True, False, True]
    assert "nested too deeply" in found[1].reason


def test_a_row_that_is_broken_in_itself_costs_no_other_row_its_score(tmp_path):
    lines = world().pool.read_text().splitlines()
    good = [json.loads(line) for line in lines[:3]]
    broken = [
        qa(image="iVBORw0KGgo" + "A" * 400),
        qa(image="images/" + "caption_" * 60 + ".png"),
        qa(image="images/\ud83d.png"),
        qa("\udc80", **{"to\ud800pic": "x\ud800"}),
        qa([{"type": "im\x1b[2Jage"}]),
    ]
    strange = {**good[2], "id": "strange", "na\ud800me": "\ud800"}
    rows = [good[0], *broken, good[1], strange]
    done(
        *world().scoring(
            tmp_path / "run",
            pool=write_jsonl(tmp_path / "pool.jsonl", rows),
            method="loss",
            anchors=None,
            image_root=world().pool.parent,
        )
    )
    done(
        *world().scoring(
            tmp_path / "plain",
            pool=write_jsonl(tmp_path / "good.jsonl", good),
            method="loss",
            anchors=None,
            image_root=world().pool.parent,
        )
    )
    mixed, plain = (read_scores(tmp_path / run).read(["score", "reason"]).to_pylist() for run in ("run", "plain"))
    # batches of another size may change the last bits of float32
    assert [mixed[row]["score"] for row in (0, 6, 7)] == pytest.approx([row["score"] for row in plain], rel=1e-5)
    assert all(row["score"] is None and row["reason"].isprintable() for row in mixed[1:6])


def test_columns_that_look_like_pictures_are_counted_before_scoring_and_read_when_named(tmp_path):
    rows = [json.loads(line) for line in world().pool.read_text().splitlines()[:3]]
    moved = [{**row, "images": None, "image_path": row["images"][0]} for row in rows]
    for row in moved:
        row["messages"][0]["content"] = row["messages"][0]["content"].replace("<image>", "")
    pool = write_jsonl(tmp_path / "pool.jsonl", [moved[0], rows[1], moved[2]])
    asked = {"pool": pool, "method": "loss", "anchors": None, "image_root": world().pool.parent}
    said = done(*world().scoring(tmp_path / "text", **asked)).err
    assert f"{pool}: 2 rows have no picture, but column image_path looks like one" in said
    read = done(*world().scoring(tmp_path / "read", **asked, image_column="image_path")).err
    assert "have no picture" not in read
    plain = {**asked, "pool": write_jsonl(tmp_path / "plain.jsonl", rows)}
    done(*world().scoring(tmp_path / "plain", **plain))
    text, read, plain = (
        read_scores(tmp_path / run).read(["score"])["score"].to_pylist() for run in ("text", "read", "plain")
    )
    assert read == plain
    assert text[0] != plain[0]


def test_a_benchmark_is_read_by_the_same_rules(tmp_path):
    question = [{"role": "user", "content": {"type": "text", "text": "How many?"}}]
    rows = [
        {"messages": question, "answer": "4", "image_path": "a.png"},
        {"messages": [*question, {"role": "Model", "content": "It is 4."}], "answer": 4, "image_path": "a.png"},
        {"prompt": "How many?", "answer": "4", "image": "a.png"},
        {"conversations": [{"from": "human", "value": "<IMAGE>\nHow many?"}], "answer": "4", "images": ["a.png"]},
    ]
    path = write_jsonl(tmp_path / "questions.jsonl", rows)
    asked = read_benchmark(path, image_column="image_path")
    assert [question.turns for question in asked] == [asked[0].turns] * 4
    assert [question.answer for question in asked] == ["4"] * 4
    assert [question.unread for question in read_benchmark(path)] == ["column image_path"] * 2 + [""] * 2
