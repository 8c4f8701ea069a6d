"""Whatever a file says, what is shown of it is printable, on its own line, and short."""

import json

import pyarrow.parquet as pq
import pytest

from onesteptrain.data.pool import open_pool
from onesteptrain.errors import PoolError, one_line, several_lines
from onesteptrain.storage.display import html_table
from onesteptrain.storage.score_table import Record, to_table, write_table
from tests.commands import done, ost
from tests.pool_files import qa

HOSTILE = {
    "escape": "\x1b[2J\x1b]0;title\x07",
    "bidi": "abc\u202egnp.exe\u2066x",
    "lone surrogate": "a\ud800b",
    "line ends": "x\nost: all is well\r\u2028y",
    "long": "y" * 100_000,
    "zero": "a\0b",
}


def shows(text):
    """That a text can be shown as it is."""
    return all(character.isprintable() for character in text) and len(text.encode()) < 5000


@pytest.mark.parametrize("kind", HOSTILE)
def test_one_line_is_printable_and_short_and_says_what_was_there(kind):
    line = one_line(HOSTILE[kind])
    assert shows(line)
    assert line[:1] == HOSTILE[kind][:1] or line.startswith("\\x1b")
    assert [*map(shows, several_lines(f"{HOSTILE[kind]}\nb").split("\n"))] == [True] * (2 + HOSTILE[kind].count("\n"))
    assert shows(str(PoolError(HOSTILE[kind])))


@pytest.mark.parametrize("kind", HOSTILE)
def test_uids_columns_and_paths_of_a_pool_are_shown_printable(kind, tmp_path):
    text, path = HOSTILE[kind], tmp_path / "pool.jsonl"
    rows = [
        {"id": text, **qa("How many?"), f"image_{text}": "a.png", "images": []},
        {"id": text, **qa("How many?", "B")},
        {"id": "2", **qa("How many?", "A"), "image": f"{text}.png"},
        {"id": "3", "messages": [{"role": text, "content": "x"}]},
        {"id": "4", "messages": [{"role": "user", "content": [{"type": text, text: text}]}]},
        {"id": "5", **qa("How many?", "A"), "image": [{text: text}]},
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    told = done("guard", path, "--out", tmp_path / "guard.parquet")
    lines = [*told.out.splitlines(), *told.err.splitlines()]
    assert all(shows(line) for line in lines)
    assert not any(line.startswith("ost: all is well") for line in lines)
    assert pq.read_table(tmp_path / "guard.parquet").num_rows >= 5
    page = open_pool(path)._repr_html_()
    assert page.replace("\n", "").isprintable()
    assert len(page) < 50_000


def test_what_the_command_line_says_of_itself_is_printable(tmp_path):
    for text in ("\x1b[2J", "a\nost: all is well", "\u202e"):
        for arguments in (
            ("guard", text),
            (text,),
            ("guard", tmp_path, f"--{text}"),
            ("select", tmp_path, "--keep", text),
        ):
            outcome = ost(*arguments)
            assert outcome.status != 0
            assert all(map(shows, outcome.err.splitlines())), outcome.err


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_table_holds_reasons_and_texts_that_can_be_shown_and_stored(kind, tmp_path):
    table = to_table(
        [("a", 0, Record(reason=HOSTILE[kind])), ("b", 1, Record(score=1.0, columns={"t": HOSTILE[kind]}))]
    )
    write_table(table, tmp_path / "t.parquet")
    assert shows(pq.read_table(tmp_path / "t.parquet")["reason"][0].as_py())
    assert html_table(HOSTILE[kind], [HOSTILE[kind]], [[HOSTILE[kind]]]).replace("\n", "").isprintable()
