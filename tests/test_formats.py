import dataclasses
import json
import pickle

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesteptrain.data.formats.json_rows import JsonArray
from onesteptrain.data.pool import ImageRef, Sample, Turn, Unreadable, open_pool, write_subset
from onesteptrain.errors import PoolError
from tests.pool_files import (
    CONTAINERS,
    DIALOGUES,
    SCHEMAS,
    data_uri,
    llava,
    messages,
    png,
    qa,
    write_json,
    write_jsonl,
    write_parquet,
)


def expected_turns(folder, images, turns):
    refs = iter([ImageRef(folder / name, name) for name in images])

    def parts(text):
        first, *others = text.split("{}")
        return tuple(p for p in [first, *(p for other in others for p in (next(refs), other))] if p != "")

    return tuple(Turn(role, parts(text)) for role, text in turns)


def as_context(turn):
    return dataclasses.replace(turn, weight=0.0) if turn.role == "assistant" else turn


def only(folder, row, **options):
    (sample,) = open_pool(write_jsonl(folder / "pool.jsonl", [row]), **options)
    return sample


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_format_in_every_container_gives_the_same_conversations(schema, container, tmp_path):
    path = CONTAINERS[container](tmp_path / container, [SCHEMAS[schema](*dialogue) for dialogue in DIALOGUES])
    pool = open_pool(path, image_root=tmp_path)
    expected = [expected_turns(tmp_path, i, t) for _, i, t in DIALOGUES]
    if schema == "trl prompt":  # as in TRL, only the completion is learned
        expected = [(*map(as_context, turns[:-1]), turns[-1]) for turns in expected]
    assert [sample.turns for sample in pool] == expected
    assert [sample.uid for sample in pool] == ["one", "two", "three"]
    assert len(pool) == 3


@pytest.mark.parametrize(
    ("text", "images", "parts"),
    [
        ("<image>\nQ", 1, (0, "Q")),
        ("<image>\n\nQ", 1, (0, "\nQ")),
        ("Q\n<image>", 1, ("Q", 0)),
        ("<image>\n<image>\nQ", 2, (0, 1, "Q")),
        ("First: <image>\nSecond: <image>\nQ", 2, ("First: ", 0, "\nSecond: ", 1, "\nQ")),
        ("Q", 2, (0, 1, "Q")),
    ],
)
def test_llava_newlines_beside_leading_and_trailing_images_belong_to_the_placeholder(text, images, parts, tmp_path):
    names = ["a.png", "b.png"][:images]
    sample = only(tmp_path, llava("x", names, [("user", text), ("assistant", "A")]))
    refs = [ImageRef(tmp_path / name, name) for name in names]
    assert sample.turns[0].parts == tuple(refs[part] if isinstance(part, int) else part for part in parts)


def test_messages_keep_newlines_as_they_are(tmp_path):
    sample = only(tmp_path, messages("x", ["a.png"], [("user", "<image>\nQ"), ("assistant", "A")]))
    assert sample.turns[0].text == "\nQ"


@pytest.mark.parametrize(
    "image", [png(), {"bytes": png(), "path": None}, {"bytes": png(), "path": "a.png"}], ids=["raw", "struct", "named"]
)
def test_image_bytes_in_parquet_become_the_source(image, tmp_path):
    (sample,) = open_pool(write_parquet(tmp_path / "pool.parquet", [qa(images=[image])]))
    assert [ref.source for ref in sample.images] == [png()]


@pytest.mark.parametrize("image", [data_uri(png()), {"url": data_uri(png())}, {"bytes": data_uri(png())[22:]}])
def test_inline_images_in_json_become_bytes(image, tmp_path):
    assert only(tmp_path, qa(image=image)).images[0].source == png()


def test_absolute_paths_do_not_move_with_the_image_root(tmp_path):
    (tmp_path / "images").mkdir()
    path = tmp_path / "elsewhere" / "a.png"
    for written in (str(path), f"file://{path}", {"path": str(path)}):
        assert only(tmp_path, qa(image=written), image_root=tmp_path / "images").images[0].source == path


def test_hf_image_features_are_read_and_come_back_with_the_same_features(tmp_path):
    message = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    columns = {"images": datasets.List(datasets.Image()), "level": datasets.ClassLabel(names=["easy", "hard"])}
    features = datasets.Features({"messages": datasets.List(message)} | columns)
    (tmp_path / "on_disk.png").write_bytes(png("blue"))
    rows = [qa(f"Q{i}", images=[{"bytes": png(), "path": None}] * (i % 3), level=i % 2) for i in range(10)]
    rows[4]["images"] = [{"bytes": None, "path": str(tmp_path / "on_disk.png")}]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "pool", num_shards=3)
    pool = open_pool(tmp_path / "pool")
    assert [len(sample.images) for sample in pool] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    write_subset(pool, [0, 4, 9], tmp_path / "subset")
    back, whole = datasets.load_from_disk(tmp_path / "subset"), datasets.load_from_disk(tmp_path / "pool")
    assert back.features == whole.features
    assert back.with_format("arrow")[:].to_pylist() == whole.with_format("arrow")[[0, 4, 9]].to_pylist()
    assert back._fingerprint != whole._fingerprint
    assert back[1]["images"][0].getpixel((0, 0)) == (0, 0, 255)


def test_a_parquet_subset_keeps_schema_metadata_types_and_compression(tmp_path):
    schema = pa.schema(
        [
            pa.field("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))),
            pa.field("images", pa.list_(pa.binary())),
            pa.field("topic", pa.dictionary(pa.int32(), pa.string()), metadata={b"note": b"x"}),
            pa.field("when", pa.timestamp("ns", "UTC")),
        ],
        metadata={b"huggingface": b'{"info": {}}', b"mine": b"yes"},
    )
    rows = [qa(f"Q{i}", images=[png()] * (i % 2), topic=f"t{i % 3}", when=i) for i in range(300)]
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, tmp_path / "pool.parquet", compression="zstd", row_group_size=90)
    chosen = np.flatnonzero(np.random.default_rng(0).random(300) < 0.6)
    write_subset(open_pool(tmp_path / "pool.parquet"), chosen, tmp_path / "out.parquet")
    back = pq.read_table(tmp_path / "out.parquet")
    assert back.equals(table.take(pa.array(chosen)))
    assert back.schema.equals(pq.read_table(tmp_path / "pool.parquet").schema, check_metadata=True)
    footer = pq.read_metadata(tmp_path / "out.parquet")
    assert footer.row_group(0).column(0).compression == "ZSTD"
    assert footer.num_row_groups == 3  # about 180 rows in batches that fill groups of 90


def test_a_folder_of_parquet_files_comes_back_as_a_folder_with_the_same_names(tmp_path):
    rows = [messages(*dialogue) for dialogue in DIALOGUES]
    pool = open_pool(CONTAINERS["parquet"](tmp_path / "pool", rows))
    assert write_subset(pool, [1, 2], tmp_path / "out") == 2
    names = sorted(file.name for file in (tmp_path / "out").glob("[!.]*"))
    assert names == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert [sample.uid for sample in open_pool(tmp_path / "out")] == ["two", "three"]


def test_jsonl_lines_are_copied_with_their_bytes_and_line_ends(tmp_path):
    lines = [
        b'{"id":1,  "messages": []}\r\n',
        b"\n",
        b'{"id": 2.0e0, "x": "\\u00e9\xc3\xa9"}\n',
        b"broken\r\n",
        b'{"id": 3}',
    ]
    (tmp_path / "pool.jsonl").write_bytes(b"".join(lines))
    pool = open_pool(tmp_path / "pool.jsonl", format="messages")
    assert len(pool) == 4  # a blank line is no row, a broken one is
    write_subset(pool, [1, 2, 3], tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == b"".join(lines[2:])


# What json.loads accepts, in every layout that it accepts
_SPACES = st.text(" \t\r\n", max_size=3)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('ab"\\[]{},:é\u2028', max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def arrays(draw):
    """Texts of elements, and the text of the array that holds them."""
    values = draw(st.lists(st.dictionaries(st.text(max_size=3), _VALUES, max_size=3) | _VALUES, max_size=6))
    texts = [json.dumps(v, ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.just(1))) for v in values]
    gaps = [draw(_SPACES) for _ in range(2 * len(texts) + 2)]
    body = ",".join(gaps[2 * i] + text + gaps[2 * i + 1] for i, text in enumerate(texts))
    return values, texts, draw(st.sampled_from(["", "\ufeff"])) + gaps[-1] + "[" + body + gaps[-2] + "]" + gaps[-1]


@settings(max_examples=150, deadline=None)
@given(array=arrays(), chunk=st.integers(1, 40), picks=st.lists(st.booleans(), min_size=6, max_size=6))
def test_every_subset_of_any_json_array_keeps_the_bytes_whatever_the_chunk(array, chunk, picks, tmp_path_factory):
    values, texts, whole = array
    folder = tmp_path_factory.mktemp("array")
    (folder / "pool.json").write_bytes(whole.encode("utf-8", "surrogatepass"))
    container = JsonArray(folder / "pool.json", chunk=chunk)
    assert repr([raw.value for raw in container.raw_rows()]) == repr(json.loads(whole.removeprefix("\ufeff")))
    assert container.count() == len(values)
    rows = np.array([row for row in range(len(values)) if picks[row]], np.int64)
    assert container.copy_rows(rows, folder / "out.json") == len(rows)
    written = (folder / "out.json").read_bytes().decode("utf-8", "surrogatepass")
    again = json.loads(written.removeprefix("\ufeff"))
    assert repr(again) == repr([json.loads(texts[row]) for row in rows])
    place = 0
    for row in rows:
        place = written.index(texts[row], place) + len(texts[row])
    if values and len(rows) == len(values):
        assert written == whole


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n {"a": 1},\n {"a" 2}\n]', "line 3: invalid JSON array (Expecting ':' delimiter"),
        ('[\n {"a": 1}\n {"a": 2}]', "line 3: invalid JSON array (',' or ']' after an element is needed, found '{"),
        ('[\n {"a": 1},\n {"a": "2', "line 3: invalid JSON array (Unterminated string"),
        ('[\n {"a": 1}', "line 2: invalid JSON array (the file ends without ',' or ']'"),
        ('[\n {"a": 1}\n]\n[]', "line 4: invalid JSON array (there is text after the end"),
        ('[\n {"a": 1},\n]', "line 3: invalid JSON array (Expecting value"),
    ],
)
def test_a_broken_array_is_refused_with_its_line_after_the_good_rows(text, message, chunk, tmp_path):
    (tmp_path / "pool.json").write_text(text)
    rows = JsonArray(tmp_path / "pool.json", chunk=chunk).raw_rows()
    assert next(rows).value == {"a": 1}
    with pytest.raises(PoolError) as caught:
        list(rows)
    assert message in str(caught.value)


@pytest.mark.parametrize("chunk", [1, 30, 10_000])
def test_the_line_of_a_broken_element_counts_what_is_no_longer_in_memory(chunk, tmp_path):
    (tmp_path / "pool.json").write_text("[\n" + '{"a":\n 1},\n' * 50 + '{"a" 2}]')
    with pytest.raises(PoolError, match=r"line 102: invalid JSON array"):
        list(JsonArray(tmp_path / "pool.json", chunk=chunk).raw_rows())


def test_bytes_that_are_not_utf8_survive_the_copy_and_name_the_row(tmp_path):
    body = b'[{"messages": [{"role": "user", "content": "\xff"}, {"role": "assistant", "content": "A"}]}]\r\n'
    (tmp_path / "pool.json").write_bytes(body)
    pool = open_pool(tmp_path / "pool.json")
    write_subset(pool, [0], tmp_path / "out.json")
    assert (tmp_path / "out.json").read_bytes() == body
    assert [row.reason.split(";")[0] for row in pool] == ["pool.json[0]: turn 1 has characters that UTF-8 cannot hold"]


def test_an_endless_row_is_refused_before_it_fills_the_memory(tmp_path):
    (tmp_path / "pool.json").write_text('[{"a": "' + "x" * 5000)
    with pytest.raises(PoolError, match=r"line 1.*longer than 1,000 characters"):
        list(JsonArray(tmp_path / "pool.json", chunk=100, largest_row=1000).raw_rows())


def reason(folder, row, **options):
    sample = only(folder, row, **options)
    assert isinstance(sample, Unreadable)
    assert sample.reason.startswith("pool.jsonl:1: ")
    return sample.reason


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (qa("<image><image>Q", images=["a"]), "2 image placeholders but 1 image;"),
        (qa("<image>Q"), "1 image placeholder but 0 images"),
        (qa("Q", " \n"), "turn 2 is an empty answer"),
        (qa("Q", None), "turn 2 is an empty answer"),
        (qa("Q", "A", image="https://host/a.png"), "download it first"),
        (qa("Q", "A", image=7), "given as int"),
        (qa("Q", "A", image="data:image/png;base64,??"), "not valid base64"),
        (qa("Q", "A", images=[{"width": 3}]), "needs bytes, path or url"),
        (qa("Q", "A", videos=["a.mp4"]), "column videos is filled"),
        (qa([{"type": "video", "video": "a.mp4"}]), "part of the type 'video'"),
        (qa("Q", "\ud800"), "characters that UTF-8 cannot hold"),
        (qa("Q", "A<image>", images=["a"]), "answer with an image"),
        ({"messages": [{"role": "user", "content": "Q"}]}, "no assistant turn"),
        ({"messages": []}, "no assistant turn"),
        ({"messages": ["Q", "A"]}, "not a list of messages"),
        ({"messages": [{"role": "assistant", "content": "A"}]}, "begins with an answer"),
        ({"messages": [*qa()["messages"], {"role": "user", "content": "Q"}]}, "ends with a question"),
        ({"messages": [*qa()["messages"], {"role": "tool", "content": "1"}]}, "message 3 has the role 'tool'"),
        ({"messages": [*qa()["messages"], {"role": "system", "content": "S"}]}, "must be the first"),
        ({"text": "Q"}, "no column messages, which the format messages needs; this row has text"),
        ("Q", "the row is a str, not an object"),
    ],
)
def test_a_row_that_cannot_be_trained_on_says_where_and_why(row, words, tmp_path):
    assert words in reason(tmp_path, row, format="messages")


def test_openai_text_that_names_the_placeholder_is_plain_text(tmp_path):
    row = qa(
        [{"type": "text", "text": "What does <image> mean?"}, {"type": "image_url", "image_url": {"url": "a.png"}}]
    )
    sample = only(tmp_path, row)
    assert sample.turns[0].parts == ("What does <image> mean?", ImageRef(tmp_path / "a.png", "a.png"))


def test_a_system_turn_goes_before_the_system_column(tmp_path):
    turns = [("system", "From the turn."), ("user", "Q"), ("assistant", "A")]
    row = messages("x", [], turns) | {"system": "From the column."}
    assert [turn.text for turn in only(tmp_path, row).turns] == ["From the turn.", "Q", "A"]


def test_an_invalid_line_is_a_row_with_a_reason_and_the_others_go_on(tmp_path):
    good = json.dumps(qa())
    deep = '{"a": ' + "[" * 100_000
    (tmp_path / "pool.jsonl").write_bytes(f"{good}\n\n{{'a': 1}}\n{deep}\n".encode() + b'"\xff"\n' + good.encode())
    rows = list(open_pool(tmp_path / "pool.jsonl"))
    assert [isinstance(row, Sample) for row in rows] == [True, False, False, False, True]
    assert rows[1].reason.startswith("pool.jsonl:3: invalid JSON (Expecting property name")
    assert "at column 2); mend or delete this line" in rows[1].reason
    assert rows[2].reason.startswith("pool.jsonl:4: JSON that cannot be read")
    assert rows[3].reason.startswith("pool.jsonl:5: not UTF-8 (byte 2 of the line)")
    assert len({row.uid for row in rows}) == 5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"a,b\n1,2\n", "starts with b'a,b"),
        (b"\x1f\x8b\x08", "cannot be read .Truncated compressed stream."),
        (b"PAR1 and no more", "cannot be read"),
        (
            b'{"instruction": "Q", "output": "A"}',
            "have the columns instruction, output",
        ),
        (b"[]", "holds no rows"),
        (b"{\n", "no row can be read; pool:1: invalid JSON"),
    ],
)
def test_a_file_that_is_no_pool_is_refused_in_one_line(content, words, tmp_path):
    (tmp_path / "pool").write_bytes(content)
    with pytest.raises(PoolError, match=words) as caught:
        open_pool(tmp_path / "pool")
    assert "\n" not in str(caught.value)


def test_a_folder_with_several_splits_is_refused(tmp_path):
    split = datasets.Dataset.from_list([qa()])
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "hf")
    with pytest.raises(PoolError, match="holds the splits test, train"):
        open_pool(tmp_path / "hf")
    for name in ("train", "test"):
        write_parquet(tmp_path / f"{name}-00000-of-00001.parquet", [qa()])
    with pytest.raises(PoolError, match="holds the splits test, train"):
        open_pool(tmp_path)


def test_a_pool_can_be_sent_to_another_process(tmp_path):
    for name, write in CONTAINERS.items():
        pool = open_pool(write(tmp_path / name, [qa(f"Q{i}") for i in range(5)]))
        assert list(pickle.loads(pickle.dumps(pool))) == list(pool)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    for text in (json.dumps(qa(id="x")), json.dumps([qa(id="x")])):
        (tmp_path / "pool").write_text("\ufeff" + text, encoding="utf-8")
        assert [sample.uid for sample in open_pool(tmp_path / "pool")] == ["x"]


def test_json_rows_are_named_by_their_position(tmp_path):
    (row,) = open_pool(write_json(tmp_path / "pool.json", [qa("Q", "")]))
    assert row.reason.startswith("pool.json[0]: turn 2 is an empty answer")
    (row,) = open_pool(write_parquet(tmp_path / "pool.parquet", [qa("Q", "")]))
    assert row.reason.startswith("pool.parquet row 0: turn 2 is an empty answer")
