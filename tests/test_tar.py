import json
import tarfile

import pytest

from onesteptrain.data.pool import Sample, Unreadable, open_pool, write_subset
from onesteptrain.errors import PoolError
from tests.pool_files import add_member, png, qa, write_tar

QA = {"question": "How many?", "answer": "4"}


def shard(path, members):
    """A tar file of these members, JSON for what is no bytes."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            add_member(tar, name, content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def only(path):
    (row,) = open_pool(path)
    return row


def pictures(row):
    return [image.source for image in row.images]


def test_members_of_one_key_are_one_row_with_its_pictures_in_order(tmp_path):
    members = {
        "a/0001.0.jpg": png("red"),
        "a/0001.json": {"question": "<image> or <image>?", "answer": "The first.", "topic": "t"},
        "a/0001.1.PNG": png("blue"),
        "a/0001.txt": b"a caption",
        "a/0002.json": QA | {"id": "own"},
        "b/0001.json": QA,
    }
    first, second, third = open_pool(shard(tmp_path / "pool.tar", members))
    assert pictures(first) == [png("red"), png("blue")]
    assert [turn.text for turn in first.turns] == [" or ?", "The first."]
    assert first.fields["topic"] == "t"
    assert first.fields["txt"] == "a caption"
    assert [first.uid, second.uid, third.uid] == ["0001", "own", "0001#2"]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": qa("<image>Q", "A")["messages"], "image": "pictures/7.png"},
        {"messages": qa("<image>Q", "A")["messages"], "images": ["7.png"]},
        qa([{"type": "image", "image": "7.png"}, {"type": "text", "text": "Q"}], "A"),
        qa([{"type": "image_url", "image_url": {"url": "7.png"}}, {"type": "text", "text": "Q"}], "A"),
        {
            "conversations": [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}],
            "image": "x/y.jpg",
        },
        {"question": "Q", "answer": "A"},
    ],
)
def test_a_picture_of_the_shard_is_the_one_that_the_row_names(row, tmp_path):
    sample = only(shard(tmp_path / "pool.tar", {"7.json": row, "7.png": png("green")}))
    assert pictures(sample) == [png("green")]
    assert [turn.text for turn in sample.turns] == ["Q", "A"]


def test_a_picture_with_a_text_alone_is_a_caption(tmp_path):
    sample = only(shard(tmp_path / "pool.tar", {"7.jpg": png(), "7.txt": b"A red square."}))
    assert pictures(sample) == [png()]
    assert [turn.text for turn in sample.turns] == ["", "A red square."]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"7.json": b"{"}, "the member 7.json is no JSON"),
        ({"7.json": [1]}, "the member 7.json is a list, not an object"),
        ({"7.json": QA, "7.mp4": b"x"}, "the column videos is filled"),
        ({"7.jpg": png()}, "no column messages"),
    ],
)
def test_a_member_that_cannot_be_read_is_a_reason_and_the_next_row_goes_on(members, reason, tmp_path):
    bad, good = open_pool(shard(tmp_path / "pool.tar", members | {"8.json": QA}))
    assert isinstance(bad, Unreadable)
    assert bad.reason.startswith(f"pool.tar:7: {reason}")
    assert isinstance(good, Sample)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_are_not_followed(kind, tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    with tarfile.open(tmp_path / "pool.tar", "w") as tar:
        add_member(tar, "7.json", json.dumps(QA).encode())
        info = tarfile.TarInfo("7.png")
        info.type, info.linkname = kind, str(tmp_path / "secret.png")
        tar.addfile(info)
        add_member(tar, "8.json", json.dumps(QA).encode())
    bad, good = open_pool(tmp_path / "pool.tar")
    assert "7.png is a link or no plain file" in bad.reason
    assert isinstance(good, Sample)


def test_names_that_leave_the_folder_are_names_and_nothing_else(tmp_path):
    (tmp_path / "in").mkdir()
    pool = open_pool(shard(tmp_path / "in" / "pool.tar", {"../../7.json": QA}))
    assert [row.uid for row in pool] == ["7"]
    write_subset(pool, [0], tmp_path / "in" / "out.tar")
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["out.tar", "pool.tar"]


def test_a_subset_holds_all_members_of_its_rows_as_they_stand(tmp_path):
    members = {f"{i}{end}": png() + bytes([i]) for i in range(9) for end in (".jpg", ".depth.npy")}
    members |= {f"{i}.json": QA for i in range(9)}
    members = dict(sorted(members.items()))
    pool = open_pool(shard(tmp_path / "pool.tar", members))
    assert write_subset(pool, [0, 4, 8], tmp_path / "out.tar") == 3
    with tarfile.open(tmp_path / "out.tar") as tar:
        written = {info.name: tar.extractfile(info).read() for info in tar}
    expected = {name: content for name, content in members.items() if name[0] in "048"}
    assert {name: content for name, content in written.items() if "json" not in name} == {
        name: content for name, content in expected.items() if "json" not in name
    }
    assert [*written] == [*expected]


def test_no_cut_and_no_flipped_header_makes_a_shorter_pool(tmp_path):
    """tarfile takes a broken header for the end: at every block, the file must be refused or hold all rows."""
    whole = write_tar(tmp_path / "pool.tar", [QA | {"n": i} for i in range(4)]).read_bytes()
    blocks = range(512, len(whole.rstrip(b"\0")), 512)
    assert len(blocks) >= 7
    for place in blocks:
        assert rows_or_refusal(tmp_path, whole[:place]) == "broken or cut off"
        flipped = whole[:place] + b"\xff" * 160 + whole[place + 160 :]
        assert rows_or_refusal(tmp_path, flipped) in (4, "broken or cut off")  # 4: in a text, and a reason


def rows_or_refusal(folder, content):
    (folder / "pool.tar").write_bytes(content)
    try:
        return len([*open_pool(folder / "pool.tar")])
    except PoolError as error:
        return "broken or cut off" if "broken or cut off" in str(error) else str(error)


def test_tar_files_that_were_put_together_are_read_to_the_end(tmp_path):
    parts = [write_tar(tmp_path / f"{i}.tar", [QA] * 3).read_bytes() for i in range(2)]
    (tmp_path / "pool.tar").write_bytes(b"".join(parts))
    assert len(open_pool(tmp_path / "pool.tar")) == 6


def test_long_and_foreign_names_are_read(tmp_path):
    key = "x" * 150
    sample = only(shard(tmp_path / "pool.tar", {f"sä/{key}.jpg": png(), f"sä/{key}.json": QA}))
    assert sample.uid == key
    assert pictures(sample) == [png()]
