"""From a scored pool to more anchors: suggested to a person, marked, accepted, and left out of the pool."""

import json

import pyarrow.parquet as pq
import pytest

from onesteptrain.data.anchors import ACCEPTED
from onesteptrain.data.pool import open_pool, write_subset
from onesteptrain.errors import AnchorError, ConfigError
from onesteptrain.jobs.anchor_files import accept_file, check_anchors
from onesteptrain.storage.score_table import ScoreTable, read_scores
from tests.commands import ROWS, done, refusal, scored, world
from tests.pool_files import png, qa, write_jsonl


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def marked(path, marks):
    """A person fills in the marks, in the file as it stands."""
    text = path.read_text()
    for mark in marks:
        text = text.replace('"checked": ""', f'"checked": "{mark}"', 1)
    path.write_text(text)


def suggest(folder, count=4, *options):
    out = folder / "suggested.jsonl"
    told = done("anchors", "--suggest", count, "--run", scored(), "--out", out, *options)
    return out, told


def test_suggested_rows_are_those_of_the_pool_with_an_empty_mark_in_front(tmp_path):
    out, told = suggest(tmp_path)
    pool = {row.uid: row for row in open_pool(world().pool)}
    rows = lines(out)
    assert len(rows) == len({row["id"] for row in rows}) == 4
    assert all(list(row)[:2] == ["checked", "why"] and row["checked"] == "" for row in rows)
    for row in open_pool(out):
        assert [turn.text for turn in row.turns] == [turn.text for turn in pool[row.uid].turns]
        assert [ref.source for ref in row.images] == [ref.source.resolve() for ref in pool[row.uid].images]
    page = (tmp_path / "suggested.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert all(row["id"] in page for row in rows)
    assert "write good, bad or unsure" in told.out


def test_good_rows_become_anchors_and_their_pool_is_scored_without_them(tmp_path):
    out, _ = suggest(tmp_path)
    marked(out, ["good", "bad", " Good ", "unsure"])
    more = tmp_path / "more.jsonl"
    told = done("anchors", world().anchors, "--accept", out, "--out", more)
    assert "took in 2 of 4 rows (2 good, 1 bad, 1 unsure, 0 not marked)" in told.out
    assert f"next: ost score {world().pool}" in told.err
    before, after = (list(open_pool(path, image_root=world().anchors.parent)) for path in (world().anchors, more))
    assert [row.turns for row in after[: len(before)]] == [row.turns for row in before]
    good = [row["id"] for row in lines(out) if row["checked"].strip().casefold() == "good"]
    assert [row.uid for row in after[len(before) :]] == good
    assert all(row.images[0].source.is_file() for row in after)
    run = tmp_path / "run"
    done(*world().scoring(run, anchors=more, anchor_image_root=world().anchors.parent))
    columns = ScoreTable(run / "scores.parquet").read(["uid", "reason"]).to_pydict()
    reasons = {uid: reason for uid, reason in zip(columns["uid"], columns["reason"], strict=True) if reason}
    assert set(reasons) == set(good)
    assert all("accepted as an anchor" in reason for reason in reasons.values())
    again = done(
        "anchors", more, "--image-root", world().anchors.parent, "--accept", out, "--out", tmp_path / "x.jsonl"
    )
    assert "took in 0 of 4" in again.out
    assert "2 good rows say what an anchor says already" in again.out


def test_rows_are_accepted_into_anchors_of_another_format_and_container(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}]
    anchors = open_pool([{"id": "old", "conversations": talk, "image": "a.png"}], image_root=tmp_path)
    write_subset(anchors, [0], tmp_path / "anchors.jsonl")
    out, _ = suggest(tmp_path)
    marked(out, ["good"] * 4)
    suggested = list(open_pool(out))
    for name in ("json", "jsonl", "parquet"):
        more = tmp_path / f"more.{name}"
        made = accept_file(open_pool(tmp_path / "anchors.jsonl"), open_pool(out), more)
        assert (made.taken, made.repeats, made.anchors, made.pools) == (4, 0, 5, [str(world().pool)])
        old, *new = open_pool(more)
        assert old.uid == "old"
        assert [row.turns[0].text for row in new] == [row.turns[0].text for row in suggested]
        assert [row.images[0].source.read_bytes() for row in new] == [
            row.images[0].source.read_bytes() for row in suggested
        ]
        assert {row.fields[ACCEPTED] for row in new} == {str(world().pool)}
        assert "checked" not in new[0].fields
    assert pq.read_schema(tmp_path / "more.parquet").field("image").type is not None


@pytest.mark.parametrize(
    ("marks", "said"),
    [
        ([], "no row is marked good"),
        (["bad"] * 4, "no row is marked good"),
        (["good", "goood"], r"row 1 \(s\d+\) has checked 'goood'; write good, bad or unsure"),
    ],
)
def test_marks_that_mean_nothing_are_refused(tmp_path, marks, said):
    out, _ = suggest(tmp_path)
    marked(out, marks)
    with pytest.raises(AnchorError, match=said):
        accept_file(open_pool(world().anchors), open_pool(out), tmp_path / "more.jsonl")
    assert not (tmp_path / "more.jsonl").exists()


def test_a_row_that_was_broken_while_it_was_marked_is_named(tmp_path):
    out, _ = suggest(tmp_path)
    marked(out, ["good"])
    out.write_text(out.read_text().replace("}\n", "\n", 1))
    line = refusal("anchors", world().anchors, "--accept", out, "--out", tmp_path / "more.jsonl")
    assert "suggested.jsonl:1: invalid JSON" in line


def test_repeats_of_anchors_and_of_one_another_are_not_suggested(tmp_path):
    rows = [qa(f"Question {n // 2}?", f"Answer {n}", id=f"r{n}") for n in range(12)]  # each question twice
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    run = tmp_path / "run"
    anchors = write_jsonl(tmp_path / "anchors.jsonl", [qa("Question 9?", "x", id="a"), qa("question 3?", "y", id="b")])
    done("score", pool, "--anchors", anchors, "--allow-leaks", "--method", "random", "--out", run)
    out = tmp_path / "out.jsonl"
    done("anchors", "--suggest", 5, "--run", run, "--out", out)
    assert sorted(row["messages"][0]["content"] for row in lines(out)) == [f"Question {n}?" for n in (0, 1, 2, 4, 5)]
    assert "from 1 to 5" in refusal("anchors", "--suggest", 6, "--run", run, "--out", tmp_path / "six.jsonl")


def test_a_check_names_repeats_leaks_and_what_no_scores_can_tell(tmp_path):
    anchors = [qa("One?", "1", id="a"), qa("ONE?", "2", id="b"), qa("Two?", "2", id="c")]
    pool = [qa(f"Other {n}?", "3", id=f"p{n}") for n in range(3)] + [qa("two?", "2", id="leak")]
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", rows) for name, rows in (("anchors", anchors), ("pool", pool))]
    told = done("anchors", paths[0], "--check", "--pool", paths[1]).out
    assert "1 anchors repeat others: 'b' repeats 'a' (same question and image, other answer)" in told
    assert "1 rows are anchors too: row 3 is anchor 'c' (same sample)" in told
    assert "is told with scores" in told
    assert done("anchors", paths[0], "--check").out.count("repeated:") == 1


def test_a_check_with_a_run_takes_its_pool_and_anchors(tmp_path):
    facts = json.loads(done("anchors", "--check", "--run", scored(), "--json").out)
    assert facts["anchors"] == 6
    assert facts["odd"] is None  # six anchors carry no gate
    other = list(open_pool(world().pool))[:3]
    with pytest.raises(ConfigError, match="was scored by other anchors"):
        check_anchors(other, None, table=read_scores(scored()))


def test_scoring_says_what_sets_anchors_apart_and_keeps_it(tmp_path):
    answers = [
        json.dumps(row | {"messages": [row["messages"][0], {"role": "assistant", "content": "7"}]})
        for row in lines(world().anchors)
    ]
    anchors = world().anchors.with_name("bare.jsonl")
    anchors.write_text("\n".join(answers) + "\n")
    told = done(*world().scoring(tmp_path / "run", anchors=anchors))
    (said,) = (line for line in told.err.splitlines() if "anchors answer without reasoning" in line)
    assert said.startswith("anchors: 100% of the anchors")
    assert said.removeprefix("anchors: ") in told.out.splitlines()
    again = done(*world().scoring(tmp_path / "run", anchors=anchors))
    assert said not in again.err.splitlines()  # nothing is compared again
    assert said.removeprefix("anchors: ") in again.out.splitlines()


def test_one_thing_at_a_time_and_with_what_it_needs(tmp_path):
    out = ["--out", tmp_path / "x.jsonl"]
    assert "do one after the other" in refusal("anchors", "a", "--check", "--suggest", 5, *out)
    assert "give its run directory as --run" in refusal("anchors", "--suggest", 5, *out)
    assert "name the anchors to add to" in refusal("anchors", "--accept", "a", *out)
    assert "give --out" in refusal("anchors", world().anchors)
    assert f"suggest is 0; it must be a number of rows from 1 to {ROWS}" in refusal(
        "anchors", "--suggest", 0, "--run", scored(), *out
    )
    assert "exists" in refusal("anchors", "--suggest", 2, "--run", scored(), "--out", world().anchors)
