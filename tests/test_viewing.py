"""`ost view`: its guard, its questions, its marks, and what a draw of marks tells."""

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import hypergeom

pytest.importorskip("duckdb")
pytest.importorskip("starlette")

from starlette.testclient import TestClient

from onesteptrain.data.exclusion import read_excluded
from onesteptrain.data.pool import open_pool
from onesteptrain.errors import ConfigError, RunError
from onesteptrain.selection.precision import estimate_precision
from onesteptrain.storage.ownership import delete_made, mark
from onesteptrain.storage.score_table import Record, read_scores
from onesteptrain.viewing.app import make_app
from onesteptrain.viewing.marks import Mark, Marks, measure_precision
from onesteptrain.viewing.rows import Ask, open_rows
from tests.building import write_pool
from tests.commands import ost
from tests.pool_files import qa, write_jsonl
from tests.test_reporting import make_run, utility_record

HERE = "http://127.0.0.1:8123"
HOSTILE = '</p><script>alert("x")</script>\u202e\x00\' OR 1=1 --'


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, write_pool(tmp_path / "pool", 120), step_size=1e-3)


def browser(run, folder, *, other=None, columns=("group",), token="secret", enter=True):
    table = read_scores(run)
    rows = open_rows(table, Path(tempfile.mkdtemp(dir=folder)), other=other and read_scores(other), columns=columns)
    app = make_app(rows, table, run, token=token, port=8123)
    client = TestClient(app, base_url=HERE, raise_server_exceptions=True)
    if enter:
        assert client.get("/", params={"token": token}).status_code == 200
    return client


def post(client, path, origin=HERE, **data):
    return client.post(path, data=data, headers={"origin": origin})


def scored(run):
    return pq.read_table(run / "scores.parquet").to_pylist()


PATHS = ["/", "/row/3", "/cut", "/marks", "/draw", "/app.css", "/app.js"]


def test_no_page_is_given_without_the_token_or_to_others(run, tmp_path):
    client = browser(run, tmp_path, enter=False)
    for path in PATHS:
        assert client.get(path).status_code == 403
        assert client.get(path, params={"token": "wrong"}).status_code == 403
    entered = client.get("/", params={"token": "secret"}, follow_redirects=False)
    assert entered.headers["location"] == "/"
    assert {"httponly", "samesite=strict"} <= {
        part.strip().lower() for part in entered.headers["set-cookie"].split(";")
    }
    for path in PATHS:
        good = client.get(path)
        assert good.status_code == 200
        assert "default-src 'none'" in good.headers["content-security-policy"]
        assert client.get(path, headers={"host": "evil.example:8123"}).status_code == 421
        assert client.get(path, headers={"origin": "http://evil.example"}).status_code == 403
        assert client.get(path, headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_nothing_is_written_for_other_origins(run, tmp_path):
    client = browser(run, tmp_path)
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999"):
        assert post(client, "/mark", origin, row=1, mark="bad").status_code == 403
    assert client.post("/mark", data={"row": 1, "mark": "bad"}).status_code == 403
    assert not (run / "marks.json").exists()


def test_files_are_not_given_by_path(run, tmp_path):
    client = browser(run, tmp_path)
    for path in (
        "/../config.yaml",
        "/%2e%2e/config.yaml",
        "/app.css/../../rows.py",
        "/app.css%00",
        "/row/../../x",
        "/row/x",
    ):
        assert client.get(path).status_code == 404


def test_the_list_is_what_the_table_holds_sorted_and_filtered(run, tmp_path):
    rows = open_rows(read_scores(run), tmp_path, columns=["group"])
    ask = Ask("utility > 0 AND answer_tokens < 15", (("group", "b"),), "score", falling=True)
    wanted = [
        one for one in scored(run) if one["score"] is not None and one["utility"] > 0 and one["answer_tokens"] < 15
    ]
    wanted = sorted((one for one in wanted if one["row"] % 2), key=lambda one: -one["score"])
    assert rows.count(ask) == len(wanted) > 5
    assert [one["uid"] for one in rows.page(ask, 2, 3)] == [one["uid"] for one in wanted[2:5]]
    assert dict(rows.facets(ask)[0].values) == {"b": len(wanted)}
    page = browser(run, tmp_path).get("/", params={"where": "score IS NULL"})
    assert f"<h1>{sum(one['score'] is None for one in scored(run))} rows</h1>" in page.text


QUESTIONS = [
    "1=1) UNION SELECT 1",
    "1=1; DROP TABLE pool",
    "(COPY pool TO '/tmp/stolen')",
    "EXISTS(ATTACH '/tmp/x')",
    "(SELECT count(*) FROM read_csv('/etc/passwd')) > 0",
    "EXISTS(FROM read_text('/etc/passwd'))",
    "EXISTS(FROM glob('/*'))",
    "EXISTS(FROM '/etc/passwd')",
    "EXISTS(FROM locked)",
    "SET memory_limit='9GB'",
    "nosuch = 1",
    "'",
]


def test_expressions_reach_no_file_and_change_nothing(run, tmp_path):
    client = browser(run, tmp_path)
    for question in QUESTIONS:
        answer = client.get("/", params={"where": question})
        assert (answer.status_code, "cannot be asked" in answer.text) == (400, True), question
        assert "root:" not in answer.text
    assert "<h1>120 rows</h1>" in client.get("/").text


def test_a_question_that_takes_long_is_ended(run, tmp_path):
    rows = dataclasses.replace(open_rows(read_scores(run), tmp_path), seconds=0.1)
    with pytest.raises(ConfigError, match="took longer"):
        rows.count(Ask("(SELECT count(*) FROM range(100000000) a, range(100000) b WHERE a.range + b.range < 0) > 0"))
    assert rows.count(Ask()) == 120


def test_unknown_columns_and_rows_are_named(run, tmp_path):
    client = browser(run, tmp_path)
    assert client.get("/", params={"sort": 'x" DESC; --'}).status_code == 400
    assert client.get("/", params={"f.nosuch": "1"}).status_code == 400
    assert client.get("/row/999").status_code == 404
    assert post(client, "/mark", row=999, mark="bad").status_code == 404
    assert post(client, "/mark", row=1, mark="splendid").status_code == 400
    assert post(client, "/mark", row=1, mark="bad", note="x" * 70_000).status_code == 413


def test_hostile_texts_are_inert(tmp_path):
    pool = write_jsonl(
        tmp_path / "pool.jsonl", [{**qa(row), "id": f"{row}{HOSTILE}", "answer": HOSTILE} for row in range(9)]
    )
    run = make_run(
        tmp_path, pool, lambda row: Record(0.1 * row, columns={"utility": 0.1, HOSTILE.replace("\x00", ""): 1.0})
    )
    client = browser(run, tmp_path, columns=())
    post(client, "/mark", row=1, mark="bad", note=HOSTILE)
    for path in ("/", "/?view=gallery", "/row/1", "/cut", "/marks"):
        page = client.get(path)
        assert page.status_code == 200
        assert "<script>alert" not in page.text
        assert "\u202e" not in page.text
        assert "\x00" not in page.text


def test_a_row_is_shown_with_its_dialogue_and_picture(run, tmp_path):
    page = browser(run, tmp_path).get("/row/5").text
    assert "What is 5 plus 5?" in page
    assert 'src="data:image/png;base64,' in page
    gallery = browser(run, tmp_path).get("/", params={"view": "gallery", "page": "2"}).text
    assert gallery.count("<img") == 24


def test_a_moved_cut_counts_what_the_scores_say(run, tmp_path):
    scores = [one["score"] for one in scored(run) if one["score"] is not None]
    rows = open_rows(read_scores(run), tmp_path, columns=["group"])
    (_, count, kept, _), *_ = rows.at_cut(5e-4, None)
    assert (count, kept) == (120, sum(score >= 5e-4 for score in scores))
    assert sum(part[2] for part in rows.at_cut(5e-4, "group")) == kept
    assert browser(run, tmp_path).get("/cut", params={"cut": "nan", "by": "group"}).status_code == 200


def test_two_runs_are_compared_by_uid(run, tmp_path):
    def other(row):
        return Record(reason="too large") if row < 10 else utility_record(row)

    (tmp_path / "second").mkdir()
    second = make_run(tmp_path / "second", tmp_path / "pool" / "pool.jsonl", other, step_size=1e-3)
    rows = open_rows(read_scores(run), tmp_path, other=read_scores(second))
    moved = dict(next(facet for facet in rows.facets(Ask()) if facet.name == "moved").values)
    lost = sum(one["score"] is not None for one in scored(run)[:10])
    assert moved == {"as before": 120 - lost, "kept to no score": lost}


def test_marks_stay_and_are_exported(run, tmp_path):
    mark(run, "a run")
    client = browser(run, tmp_path)
    post(client, "/mark", row=3, mark="good", note="fine")
    post(client, "/mark", row=8, mark="bad", note="")
    post(client, "/mark", row=7, mark="unsure")
    post(client, "/mark", row=7, mark="")
    again = browser(run, tmp_path)
    assert "Marked good." in again.get("/row/3").text
    assert post(again, "/export").status_code == 200
    pool = open_pool(tmp_path / "pool" / "pool.jsonl")
    uids = [(row.row, row.uid) for row in pool]
    assert read_excluded(run / "marked" / "exclude.jsonl", uids, pool.fingerprint) == [8]
    (good,) = open_pool(run / "marked" / "good.jsonl", allow_outside=True)
    assert (good.uid, good.fields["checked"], good.fields["why"]) == ("s3", "good", "fine")
    assert good.turns[1].text == pool[3].turns[1].text
    assert pq.read_table(run / "marked" / "marks.parquet")["mark"].to_pylist() == ["good", "bad"]
    delete_made(run)
    assert set(Marks(run).read()) == {"s3", "s8"}


def test_broken_marks_are_refused(run):
    for text in ("[]", "{", json.dumps({"marks": {"s1": {"mark": "x", "note": ""}}})):
        (run / "marks.json").write_text(text)
        with pytest.raises(RunError, match="holds no marks"):
            Marks(run)


def test_the_draw_leads_through_unmarked_rows_and_only_its_beginning_counts(run, tmp_path):
    client = browser(run, tmp_path)
    draw = open_rows(read_scores(run), tmp_path / "pool").draw("kept", 1000)
    assert sorted(draw) == sorted(one["uid"] for one in scored(run) if one["score"] is not None)
    first = client.get("/draw", follow_redirects=False).headers["location"]
    assert first == f"/row/{draw[0][1:]}?draw=1"
    onward = client.post("/mark", data={"row": draw[0][1:], "mark": "good", "draw": "1"}, headers={"origin": HERE})
    assert str(onward.url).endswith(f"/row/{draw[1][1:]}?draw=1")
    marks = {uid: Mark("good", "") for uid in (*draw[:3], *draw[4:9])}
    assert measure_precision("kept", len(draw), draw, marks).marked == 3


def brute_interval(rows, right, wrong):
    inside = [
        true
        for true in range(right, rows - wrong + 1)
        if hypergeom.sf(right - 1, rows, true, right + wrong) > 0.025
        and hypergeom.cdf(right, rows, true, right + wrong) > 0.025
    ]
    return min(inside) / rows, max(inside) / rows


@pytest.mark.parametrize(("rows", "right", "wrong"), [(40, 7, 3), (40, 0, 10), (200, 50, 0), (12, 5, 7), (1, 1, 0)])
def test_the_interval_holds_every_population_that_no_tail_rejects(rows, right, wrong):
    told = estimate_precision(rows, right, wrong)
    assert (told.low, told.high) == pytest.approx(brute_interval(rows, right, wrong))
    assert estimate_precision(2_000_000, 45, 5).low == pytest.approx(0.7819, abs=1e-3)  # Clopper-Pearson of 45 in 50


def test_unsure_rows_widen_the_interval_to_both_sides():
    assert estimate_precision(500, 30, 10, 10).low == estimate_precision(500, 30, 20).low
    assert estimate_precision(500, 30, 10, 10).high == estimate_precision(500, 40, 10).high
    with pytest.raises(ConfigError, match="at most all"):
        estimate_precision(3, 2, 2)


def test_the_interval_covers_the_truth_over_200_markings():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        bad = generator.random(400) < generator.uniform(0.3, 1.0)
        uids = [f"r{place}" for place in generator.permutation(400)]
        marks = {uid: Mark("bad" if bad[int(uid[1:])] else "good", "") for uid in uids[:50]}
        told = measure_precision("dropped", 400, uids, marks)
        hits += told.low <= bad.mean() <= told.high
    assert hits >= 182  # of 200 with 95 % each, fewer are seen once in a hundred times


def test_a_taken_port_and_a_missing_run_are_said_in_one_line(run, tmp_path):
    assert ost("view", tmp_path / "nowhere").status == 1
    taken = ost("view", run, "--port", "99999")
    assert (taken.status, taken.err.count("\n")) == (1, 1)


def test_ctrl_c_is_the_usual_end(run, monkeypatch):
    def interrupted(server, sockets):
        assert sockets[0].getsockname()[0] == "127.0.0.1"
        raise KeyboardInterrupt

    monkeypatch.setattr("uvicorn.Server.run", interrupted)
    ended = ost("view", run, "--json")
    assert ended.status == 0
    assert json.loads(ended.out)["address"].startswith("http://127.0.0.1:")
