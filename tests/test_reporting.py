import base64
import html.parser
import io
import json
import math
import re
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from onesteptrain.cli import main
from onesteptrain.data.pool import ImageRef, open_pool, text_of
from onesteptrain.errors import ConfigError, MissingExtraError, PoolError, RunError, ScoreError
from onesteptrain.reporting import ReportOptions, write_report
from onesteptrain.reporting.comparison import summarize_arms
from onesteptrain.reporting.counting import bin_by_length, count_reasons, kind_of
from onesteptrain.reporting.decision import find_cut
from onesteptrain.reporting.examples import read_groups, thumbnail
from onesteptrain.reporting.figures import bin_edges
from onesteptrain.reporting.heat import shade_of
from onesteptrain.reporting.typeset import choose_scale
from onesteptrain.selection import advise, default_rule, select_rows
from onesteptrain.selection.trust import measure_trust
from onesteptrain.storage.score_table import Record, ScoreTable, merge, read_scores, to_table, write_table
from tests.building import png, write_pool
from tests.pool_files import qa, write_jsonl

pytest.importorskip("matplotlib")

HOSTILE = '<script>alert("x")</script><img src="https://example.org/x.png" onerror=alert(1)>'
VOID = {"meta", "img", "path", "use", "br", "hr", "link", "input"}


class Page(html.parser.HTMLParser):
    """Elements with their attributes, the text outside style, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(text)
        assert not self.open
        self.text = re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)


def utility_record(row):
    """Any record with the columns of one_step; every 9th row has a reason instead."""
    if row % 9 == 4:
        return Record(reason=f"pool.jsonl:{row + 1}: image 'images/{row}.png': {100 + row} pixels; scale it down")
    generator = np.random.default_rng(row)
    tokens = generator.normal(1e-4, 1e-3, 3 + row % 20)
    harm, gain = float(np.minimum(tokens, 0).mean()), float(np.maximum(tokens, 0).mean())
    columns = {"utility": harm + gain, "harm": harm, "gain": gain, "loss": 1.0 + row % 7 / 10}
    return Record(harm + gain + 1e-3 * generator.normal(), columns={**columns, "answer_tokens": len(tokens)})


def make_run(folder, pool_path, record=utility_record, **asked):
    """A run directory as `ost score` leaves it."""
    pool = open_pool(pool_path)
    run = folder / "run"
    run.mkdir()
    write_table(to_table((one.uid, one.row, record(one.row)) for one in pool), folder / "shard.parquet")
    merge([folder / "shard.parquet"], run / "scores.parquet", {"pool": pool.fingerprint})
    reading = {"format": "auto", "image_root": str(pool.image_root)}
    proxy = {"proxy": asked.pop("proxy")} if "proxy" in asked else {}
    method = {"name": asked.pop("method", "one_step"), "options": asked}
    request = {"pool": str(pool.path), "pool_reading": reading, "method": method, **proxy}
    (run / "config.yaml").write_text(yaml.safe_dump({"score": request}))
    (run / "provenance.json").write_text(json.dumps({"versions": {"torch": "2.0"}, "seconds": 90.0, "device": "cpu"}))
    return run


def page_of(run, folder, **asked):
    return Page(write_report(read_scores(run), folder / "page.html", **asked).read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, write_pool(tmp_path / "pool", 100), step_size=1e-3)


def scored_rows(run):
    """The scored rows as dicts, in pool order."""
    return [row for row in pq.read_table(run / "scores.parquet").to_pylist() if row["score"] is not None]


def thousandths(value):
    return f"{1e3 * value:.3f}".replace("-", "−")


def test_the_counts_on_the_page_are_those_of_the_table(run, tmp_path):
    scored = scored_rows(run)
    negative = sum(row["utility"] < 0 for row in scored)
    text = page_of(run, tmp_path).text
    assert f"of 100 rows scored {len(scored)}" in text
    assert f"rows with a reason in place of a score {100 - len(scored)}" in text
    assert f"have negative utility ({negative} rows) {100 * negative / len(scored):.1f} %" in text
    assert re.search(rf"harm\s+\S+\s+{thousandths(statistics.median(row['harm'] for row in scored))} ", text)
    assert "Step size 0.001" in text


@pytest.mark.parametrize("keep", [20, 50])
def test_the_kept_utility_is_that_of_the_rows_that_select_keeps(keep, run, tmp_path):
    scored = scored_rows(run)
    best = sorted(scored, key=lambda row: -row["score"])[:keep]  # of 100 rows
    share = sum(max(row["utility"], 0) for row in best) / sum(max(row["utility"], 0) for row in scored)
    harmful = sum(row["utility"] < 0 for row in best)
    selection = select_rows(ScoreTable(run / "scores.parquet"), keep=f"{keep}%")
    assert selection.kept.utility_share == pytest.approx(share, rel=1e-12)  # the order of a float64 sum
    assert f" {keep} % {keep} {100 * share:.1f} % {harmful} " in page_of(run, tmp_path).text


def test_advise_select_and_the_page_tell_the_same_of_a_share(tmp_path):
    def record(row):
        generator = np.random.default_rng(row)
        signals = -generator.lognormal(2 * (row % 2)), *generator.lognormal(2 * (row % 2), size=2)
        values = dict(zip(("harm", "loss", "worst_loss"), signals, strict=True))
        return Record(float(generator.normal()), columns={**values, "utility": float(generator.normal()), "tokens": 9})

    run = make_run(tmp_path, write_pool(tmp_path / "pool", 100), record)
    write_table(to_table((f"a{row}", row, record(2 * row)) for row in range(100, 140)), run / "reference.parquet")
    selection = select_rows(read_scores(run), keep="20%")
    (told,) = [line.kept for line in advise(read_scores(run)).shares if line.share == 0.2]
    assert selection.gate == "trust"
    assert told == selection.expected
    shown = f"{100 * told.utility_share:.1f} % {told.harmful:.0f} {100 * told.clean_share:.1f} %"
    assert f" 20 % 20 {100 * told.tokens_share:.1f} % {shown} " in page_of(run, tmp_path).text


def gated_record(row, spread=4, **columns):
    """Any record with the signals of the trust gate; every other row is far from the rest."""
    generator = np.random.default_rng(row)
    signals = -generator.lognormal(spread * (row % 2)), *generator.lognormal(spread * (row % 2), size=2)
    values = dict(zip(("harm", "loss", "worst_loss"), signals, strict=True))
    return Record(float(generator.normal()), columns={**values, **columns, "utility": 1.0, "tokens": 9})


def record_with_tokens(row):
    return gated_record(row, token_utility=np.random.default_rng(row + 1).normal(size=3).astype(np.float32))


def make_gated_run(folder, record=gated_record):
    run = make_run(folder, write_pool(folder / "pool", 100), record)
    write_table(to_table((f"a{row}", row, gated_record(2 * row)) for row in range(100, 140)), run / "reference.parquet")
    return run


def test_the_decision_is_what_select_does(tmp_path):
    run = make_gated_run(tmp_path)
    selection = select_rows(read_scores(run), keep="100%")
    assert selection.gate == "trust"
    kept = len(selection.rows)
    assert 0 < kept < 100
    page = page_of(run, tmp_path).text
    assert f"Drop {100 - kept} of 100 scored rows ({100 - kept}.0\u00a0%) and train on the rest." in page.replace(
        " %", "\u00a0%"
    )
    assert f"{kept} are kept" in page
    assert f"An epoch on them takes {kept}.0" in page
    assert f"ost select RUN --keep {kept} --out SUBSET" in page
    assert f"kept, {kept} rows" in page
    assert f"dropped, {100 - kept} rows" in page
    assert "anchors, 40" in page
    told = measure_trust(read_scores(run)).verdict.passing_clean.value
    assert f"about {told:.0%} of the kept rows" in page


def test_shown_rows_lie_on_the_side_of_the_cut_that_their_title_says(tmp_path):
    table = read_scores(make_gated_run(tmp_path))
    kept = set(select_rows(table, keep="100%").rows.tolist())
    cut = find_cut(default_rule(table))
    groups = read_groups(table, open_pool(tmp_path / "pool" / "pool.jsonl"), cut, [], 6, None)
    rows = [[example.row for example in group.rows] for group in groups]
    assert list(map(len, rows)) == [6, 2, 2, 2, 2]
    furthest, just_dropped, just_kept, dropped, kept_ones = rows
    shown = [row for some in rows for row in some]
    assert len(set(shown)) == len(shown)
    assert {row in kept for row in furthest + just_dropped + dropped} == {False}
    assert {row in kept for row in just_kept + kept_ones} == {True}
    by_value = sorted(set(range(100)) - kept, key=lambda row: cut.value[row])
    assert furthest == by_value[:-7:-1]
    assert just_dropped == by_value[:2]
    assert just_kept == sorted(kept, key=lambda row: -cut.value[row])[:2]


def test_words_of_shown_answers_are_coloured_by_their_stored_utilities(tmp_path):
    table = read_scores(make_gated_run(tmp_path, record_with_tokens))
    pool = open_pool(tmp_path / "pool" / "pool.jsonl")

    def quote(sample):  # three tokens: the first character, the rest of the first word, the end of the turn
        answer = text_of(sample, "assistant")
        return [(0, 1), (1, answer.index(" ") if " " in answer else len(answer)), (len(answer), len(answer))]

    groups = read_groups(table, pool, find_cut(default_rule(table)), [], 6, quote)
    rows = [example.row for group in groups for example in group.rows]
    stored = table.read(["token_utility"])["token_utility"].to_pylist()
    first = {row: stored[row][0] + stored[row][1] for row in rows}
    sizes = np.abs(list(first.values()))
    scale = np.quantile(sizes, 0.95)
    for group in groups:
        for example in group.rows:
            heat = next(passage.heat for passage in example.passages if passage.role == "Answer")
            shade = shade_of(first[example.row], scale)
            assert heat.count("<span class=") == bool(shade)
            assert f'<span class="heat {shade}">' in heat or not shade


def test_without_anchors_nothing_is_dropped(run, tmp_path):
    text = page_of(run, tmp_path).text
    assert "Drop nothing on the strength of these scores: the table does not say" in text
    assert "--out SUBSET" not in text


def test_the_page_says_that_a_ranking_is_no_guide(tmp_path):
    def record(utility, **columns):
        return Record(utility, columns={**columns, "utility": utility})

    run = make_run(tmp_path, write_pool(tmp_path / "pool", 6), lambda row: record(float(row)))
    write_table(to_table((f"a{row}", row, record(float(row))) for row in range(30)), run / "reference.parquet")
    wrong = ((f"c{row}", row, record(row + 50.0, kind="cut_off", anchor=f"a{row}")) for row in range(30))
    write_table(to_table(wrong), run / "corrupted.parquet")
    assert "Utility is inverted here: in 100% (100% to 100%) of all pairs" in page_of(run, tmp_path).text


def test_the_ends_are_the_lowest_and_highest_rows_in_order(run, tmp_path):
    ordered = sorted(scored_rows(run), key=lambda row: row["utility"])
    text = page_of(run, tmp_path, options=ReportOptions(examples=3)).text
    shown = [int(row) for row in re.findall(r"row (\d+), uid s\1 ", text)]
    assert shown == [row["row"] for row in [*ordered[:3], *ordered[::-1][:3]]]
    assert f"The most harmful rows utility {thousandths(ordered[0]['utility'])} harm" in text


def test_no_row_stands_at_both_ends_of_a_small_pool(tmp_path):
    run = make_run(tmp_path, write_pool(tmp_path / "pool", 4), lambda row: Record(float(row)))
    text = page_of(run, tmp_path).text
    assert re.findall(r"row (\d+), uid", text) == ["0", "1", "3", "2"]


def test_hostile_text_stays_text(tmp_path):
    rows = [qa(HOSTILE, HOSTILE, id=f"{HOSTILE}{row}") for row in range(6)]
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    values = {"utility": -1.0, f"utility.{HOSTILE}": 1.0}
    records = [Record(reason=HOSTILE), *(Record(float(row), columns=values) for row in range(5))]
    run = make_run(tmp_path, pool, lambda row: records[row], proxy=HOSTILE)
    page = page_of(run, tmp_path, results=[{"method": HOSTILE, "accuracy": 0.5}])
    names = {tag for tag, _ in page.elements}
    assert not names & {"script", "link", "iframe", "object"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    # three in each row; method, group, reason, and the proxy among the facts and among the options
    assert page.text.count('<script>alert("x")</script>') == 3 * 5 + 5


def test_nothing_is_loaded_from_elsewhere(run, tmp_path):
    page = page_of(run, tmp_path)
    loads = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if "src" in name or "href" in name
    ]
    assert loads
    assert all(value.startswith(("data:image/", "#")) for value in loads)
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r"https?://|@import|url\((?!#)", text)


def test_ids_are_unique_and_every_reference_has_its_target(run, tmp_path):
    elements = page_of(run, tmp_path).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    used = {attributes["xlink:href"][1:] for _, attributes in elements if "xlink:href" in attributes}
    assert len(set(ids)) == len(ids)
    assert used <= set(ids)


def test_figures_take_the_colour_of_the_page_and_keep_their_text(run, tmp_path):
    page_of(run, tmp_path)
    figures = re.findall(r"<svg.*?</svg>", (tmp_path / "page.html").read_text(), re.DOTALL)
    assert len(figures) == 4
    for figure in figures:
        root = ET.fromstring(figure.replace("xlink:href", "href"))
        styles = " ".join(element.get("style", "") for element in root.iter())
        assert "currentColor" in styles
        assert not re.search(r"#(000000|ffffff|0a0b0c)", styles)
        assert any(element.tag == "text" for element in root.iter())


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    first = write_report(read_scores(run), tmp_path / "a.html").read_bytes()
    assert write_report(read_scores(run), tmp_path / "b.html").read_bytes() == first


def test_a_table_with_nothing_but_scores_has_no_word_on_utility(tmp_path):
    pool = write_pool(tmp_path / "pool", 30)
    run = tmp_path / "run"
    assert main(["score", str(pool), "--method", "random", "--out", str(run)]) == 0
    text = page_of(run, tmp_path).text
    assert "of 30 rows scored 30" in text
    assert "The lowest scores" in text
    assert "negative utility" not in text
    assert "nats" not in text


def test_a_pool_without_a_single_score_has_a_page(tmp_path):
    run = make_run(tmp_path, write_pool(tmp_path / "pool", 3), lambda row: Record(reason="too long"))
    text = page_of(run, tmp_path).text
    assert "No row has a score" in text
    assert "3 too long" in text


def test_missing_images_and_long_answers_are_noted(tmp_path):
    long = "abc " * 1000
    pool = write_jsonl(
        tmp_path / "pool.jsonl", [qa("<image>Q", long, images=["gone.png"], id="a"), qa("Q", "A", id="b")]
    )
    run = make_run(tmp_path, pool, lambda row: Record(float(row)))
    text = page_of(run, tmp_path).text
    assert "image 'gone.png': no such file" in text
    assert f"the first 1,500 of {len(long.strip()):,} characters" in text


def test_a_column_of_token_utilities_is_noted(tmp_path):
    signals = {"utility": 1.0, "token_utility": [1.0, 2.0]}
    run = make_run(tmp_path, write_pool(tmp_path / "pool", 3), lambda row: Record(1.0, columns=signals))
    assert "utility of every answer token" in page_of(run, tmp_path).text


def test_thumbnails_keep_small_images_pixel_by_pixel_and_shrink_large_ones():
    small = thumbnail(ImageRef(png(1, 24, 12), "small"))
    assert small.pixelated
    assert (small.width, small.height) == (192, 96)
    kept = Image.open(io.BytesIO(base64.b64decode(small.uri.split(",")[1])))
    assert kept.tobytes() == Image.open(io.BytesIO(png(1, 24, 12))).tobytes()
    large = thumbnail(ImageRef(png(1, 1024, 512), "large"))
    assert not large.pixelated
    assert (large.width, large.height) == (256, 128)


def test_reasons_that_differ_in_names_and_numbers_are_one_kind(run):
    (kind,) = count_reasons(ScoreTable(run / "scores.parquet"))
    assert (kind.kind, kind.rows, kind.first_row) == ("image …: … pixels; scale it down", 11, 4)
    assert "images/4.png" in kind.example
    assert kind_of("turn 2 is an empty answer") != kind_of("the conversation has no assistant turn")


def test_results_are_means_over_seeds_sorted_by_accuracy(run, tmp_path):
    results = [{"method": "low", "share": "20%", "rows": 20, "seed": seed, "accuracy": 50} for seed in range(2)]
    for seed, accuracy in enumerate((70.0, 80.0, 90.0)):
        results.append({"method": "high", "share": 0.2, "rows": 20 + seed, "seed": seed, "accuracy": accuracy})
    results.append({"method": "high", "share": None, "accuracy": 60.0})
    half = 4.302653 * 10 / 3**0.5  # Student's t at 97.5 %, two degrees of freedom
    text = page_of(run, tmp_path, results=results).text
    assert (
        f"high 20% 80.0 {80 - half:.1f} to {80 + half:.1f} 3 21 high – 60.0 – 1 – low 20% 50.0 50.0 to 50.0 2 20 "
        in text
    )


@pytest.mark.parametrize("result", [{"method": "m"}, {"accuracy": 0.5}, {"method": "m", "accuracy": math.nan}])
def test_a_result_without_method_or_accuracy_is_refused(result):
    with pytest.raises(ConfigError, match="result 0"):
        summarize_arms([result])


def test_an_audit_is_shown(run, tmp_path):
    estimate = {"value": 0.987, "low": 0.912, "high": 0.999}
    size = {"step_size": 0.01, "spearman": estimate, "top_overlap": estimate, "relative_error": 0.0421}
    audit = {"estimator": "fd", "rows": 64, "failed": 0, "sizes": [size], "top_share": 0.2, "confidence": 0.95}
    text = page_of(run, tmp_path, audit=audit).text
    assert "0.01 0.987 (0.912 to 0.999) 0.99 (0.91 to 1.00) 4.2 %" in text
    with pytest.raises(ConfigError, match="ost audit"):
        write_report(read_scores(run), tmp_path / "other.html", audit={"rows": 3})


def test_an_existing_page_is_refused_unless_told_to_overwrite(run, tmp_path, capsys):
    out = tmp_path / "page.html"
    out.write_text("mine")
    with pytest.raises(RunError, match="exists"):
        write_report(read_scores(run), out)
    assert main(["report", str(run), "--out", str(out)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert out.read_text() == "mine"
    assert main(["report", str(run), "--out", str(out), "--overwrite", "--examples", "1"]) == 0
    assert out.read_text().startswith("<!doctype html>")


def test_a_page_never_takes_the_place_of_a_table_or_pool(run):
    with pytest.raises(ConfigError, match=r"\.html"):
        write_report(read_scores(run), run / "scores.parquet", overwrite=True)


def test_a_changed_or_missing_pool_is_refused_but_not_needed_without_examples(run, tmp_path):
    pool = tmp_path / "pool" / "pool.jsonl"
    pool.write_text(pool.read_text().replace("plus", "minus"))
    with pytest.raises(PoolError, match="changed"):
        write_report(read_scores(run), tmp_path / "page.html")
    pool.unlink()
    with pytest.raises(PoolError, match="does not exist"):
        write_report(read_scores(run), tmp_path / "page.html")
    assert "of 100 rows scored" in page_of(run, tmp_path, options=ReportOptions(examples=0)).text


def test_scores_outside_a_run_are_refused(run, tmp_path):
    (run / "scores.parquet").rename(tmp_path / "scores.parquet")
    with pytest.raises(RunError, match="no run directory"):
        write_report(read_scores(tmp_path), tmp_path / "page.html")
    with pytest.raises(ScoreError, match="let the scoring finish"):
        read_scores(run)


def test_without_matplotlib_the_extra_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r'pip install "onesteptrain\[report\]"'):
        write_report(read_scores(run), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_report_is_written_without_torch(run, tmp_path):
    code = (
        "import sys, onesteptrain.reporting as r; assert 'matplotlib' not in sys.modules\n"
        "from onesteptrain.cli import main; status = main(sys.argv[1:])\n"
        "sys.exit(status or 10 * ('torch' in sys.modules) or 20 * ('matplotlib.pyplot' in sys.modules))"
    )
    command = [sys.executable, "-c", code, "report", str(run), "--out", str(tmp_path / "page.html")]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_bar_never_stands_on_both_sides_of_zero(seed):
    values = np.random.default_rng(seed).normal(seed - 2, 1, 500)
    edges = bin_edges(values, signed=True)
    assert 0 in edges
    assert ((values >= edges[0]) & (values <= edges[-1])).mean() >= 0.99  # half a per cent may lie outside at each end
    assert len(edges) <= 45


@pytest.mark.parametrize("value", [0.0, 3.0, -2e-9])
def test_equal_values_have_a_bar(value):
    edges = bin_edges(np.full(10, value), signed=True)
    assert np.histogram(np.full(10, value), edges)[0].sum() == 10


def test_length_groups_hold_the_medians_of_their_rows():
    tokens = np.repeat([5.0, 50.0], 30)
    values = np.concatenate([np.arange(30.0), 100 + np.arange(30.0)])
    bins = bin_by_length(tokens, values)
    assert bins.tokens.tolist() == [5, 50]
    assert bins.quartiles[1].tolist() == [14.5, 114.5]
    assert bin_by_length(np.full(9, 5.0), np.arange(9.0)) is None


@pytest.mark.parametrize(("size", "exponent"), [(5.0, 0), (0.2, 0), (0.02, -3), (4e-5, -6), (2e4, 3)])
def test_the_scale_puts_one_or_two_digits_before_the_point(size, exponent):
    assert choose_scale(np.array([size, -size, np.nan]), "").exponent == exponent
