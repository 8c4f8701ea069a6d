"""`ost` from the outside: what it says, what it leaves behind, and what survives a kill."""

from __future__ import annotations

import fcntl
import functools
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr

from onesteptrain.cli import COMMANDS
from onesteptrain.jobs.job import read_job
from onesteptrain.proxy import loading
from onesteptrain.storage.score_table import ScoreTable
from tests.building import checkpoint, png, write_pool
from tests.commands import ROWS, done, ost, refusal, scored, world
from tests.pool_files import qa, write_json, write_jsonl

ON_A_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def table_of(run: Path) -> ScoreTable:
    return ScoreTable(run / "scores.parquet")


def scores_of(run: Path) -> np.ndarray:
    return table_of(run).numbers("score")


# What a pool may hold


def bomb() -> bytes:
    """A PNG of a few bytes whose head promises 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


BAD = {  # row, and a part of its reason
    "missing": (qa("<image>What?", "7", images=["images/none.png"]), "no such file"),
    "cut": (qa("<image>What?", "7", images=["images/cut.png"]), "broken or cut off"),
    "bomb": (qa("<image>What?", "7", images=["images/bomb.png"]), "far too many pixels"),
    "no image": (qa("<image>What?", "7", images=["images/text.png"]), "not an image"),
    "count": (qa("<image>What?", "7", images=["images/good.png"] * 2), "1 image placeholder but 2 images"),
    "empty": (qa("<image>What?", "  ", images=["images/good.png"]), "empty answer"),
    "token": (qa("<image>What is <|image_pad|>?", "7", images=["images/good.png"]), "<|image_pad|>"),
    "long": (qa("What?", "7 " * 3000), "more than the limit"),
    "no turns": ({"messages": []}, "turn"),
}


def bad_pool(folder: Path) -> Path:
    """Good rows, one of them twice, with every bad one and a broken line between them."""
    (folder / "images").mkdir(parents=True)
    contents = {"good.png": png(1), "cut.png": png(1)[:300], "bomb.png": bomb(), "text.png": b"hello"}
    for name, content in contents.items():
        (folder / "images" / name).write_bytes(content)
    good = qa("<image>What?", "It is 7.", images=["images/good.png"])
    lines = [json.dumps(good)]
    for uid, (row, _) in BAD.items():
        lines += [json.dumps({"id": uid} | row), json.dumps(good)]
    (folder / "pool.jsonl").write_text("\n".join([*lines, '{"id": "broken', ""]))
    return folder / "pool.jsonl"


def test_bad_rows_have_a_reason_and_all_others_their_score(tmp_path):
    pool = bad_pool(tmp_path / "data")
    outcome = done(*world().scoring(tmp_path / "run", pool=pool, shard_rows=3), "--json")
    rows = pq.read_table(tmp_path / "run" / "scores.parquet").to_pylist()
    assert [row["row"] for row in rows] == list(range(2 * len(BAD) + 2))
    assert len({row["uid"] for row in rows}) == len(rows)
    reasons = {row["uid"]: row["reason"] for row in rows}
    for uid, (_, reason) in BAD.items():
        assert reason in reasons[uid]
        assert "\n" not in reasons[uid]
    assert "pool.jsonl:20: invalid JSON" in rows[-1]["reason"]
    good = [row["score"] for row in rows[:-1:2]]
    assert None not in good
    np.testing.assert_allclose(good, good[0], rtol=2e-2)  # one sample, in batches of another shape
    facts = json.loads(outcome.out)
    assert (facts["rows"], facts["failed"], facts["scored_now"]) == (len(rows), len(BAD) + 1, len(rows))
    assert sum(row["score"] is None for row in rows) == facts["failed"]
    assert all((row["score"] is None) == (row["reason"] is not None) for row in rows)


def test_the_summary_for_people_counts_the_bad_rows(tmp_path):
    pool = bad_pool(tmp_path / "data")
    said = done("score", pool, "--method", "random", "--out", tmp_path / "run").out
    assert f"{2 * len(BAD) + 2} rows scored" in said
    assert "rows have a reason in place of a score, such as:" in said
    assert "invalid JSON" in said


def test_a_selection_leaves_out_rows_without_a_score_and_says_so(tmp_path):
    pool = bad_pool(tmp_path / "data")
    done(*world().scoring(tmp_path / "run", pool=pool))
    said = done("select", tmp_path / "run", "--keep", "100%", "--out", tmp_path / "best.jsonl").out
    assert f"{len(BAD) + 1} rows without a score were left out" in said
    lines = pool.read_bytes().splitlines(keepends=True)
    assert (tmp_path / "best.jsonl").read_bytes() == b"".join(lines[:-1:2])


@functools.cache
def with_weights(name: str) -> Path:
    """The checkpoint with numbers that are not numbers: in a layer, or for the letter Z alone."""
    folder = checkpoint("llava").with_name(name)
    shutil.copytree(checkpoint("llava"), folder)
    weights = load_file(folder / "model.safetensors")
    if name == "nan":
        weights["language_model.model.layers.1.mlp.down_proj.weight"][0, 0] = math.nan
    else:
        vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        weights["language_model.model.embed_tokens.weight"][vocabulary["Z"]] = math.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_proxy_with_broken_weights_is_refused_and_leaves_no_scores(tmp_path):
    for estimator in ("fd", "jvp", "exact"):
        line = refusal(*world().scoring(tmp_path / "run", proxy=with_weights("nan"), estimator=estimator))
        assert "down_proj.weight is not finite in torch.float32" in line
    assert not (tmp_path / "run" / "scores.parquet").exists()


@pytest.mark.parametrize("estimator", ["fd", "jvp", "exact"])
def test_a_sample_whose_loss_is_not_a_number_has_a_reason_and_no_other_row_suffers(tmp_path, monkeypatch, estimator):
    monkeypatch.setattr(loading, "refuse_not_finite", lambda *_: None)
    answers = ["It is 7.", "It is Z.", "It is 7.", "It is 8."]
    pool = write_jsonl(tmp_path / "pool.jsonl", [qa("What?", answer) for answer in answers])
    options = {"scope": "last", "last_layers": 1, "estimator": estimator}
    done(*world().scoring(tmp_path / "run", pool=pool, proxy=with_weights("letter"), **options))
    rows = pq.read_table(tmp_path / "run" / "scores.parquet").to_pylist()
    assert [row["score"] is None for row in rows] == [False, True, False, False]
    assert "loss is nan" in rows[1]["reason"]
    assert rows[0]["score"] == pytest.approx(rows[2]["score"], rel=2e-2)


def test_weights_that_are_not_numbers_but_do_not_enter_the_anchors_are_noticed_before_they_move(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "refuse_not_finite", lambda *_: None)
    pool = write_jsonl(tmp_path / "pool.jsonl", [qa("What?", "7")])
    line = refusal(*world().scoring(tmp_path / "run", pool=pool, proxy=with_weights("letter"), estimator="fd"))
    assert "a weight of the proxy is not finite" in line


# What is refused, in one line


def text_model(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).save_pretrained(folder)
    return folder


def cut_weights(folder: Path) -> Path:
    shutil.copytree(checkpoint(), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return folder


def without_processor(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(checkpoint() / name, folder)
    return folder


def empty_folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (text_model, ["'llama' model, not a vision-language model", "give an image-text-to-text checkpoint"]),
        (cut_weights, ["cannot be loaded", "give a whole folder made by save_pretrained"]),
        (without_processor, ["has no usable processor", "save the model's processor into the folder"]),
        (empty_folder, ["has no config.json", "give a folder made by save_pretrained or a hub name"]),
        (lambda folder: folder, ["does not exist", "give a folder made by save_pretrained or a hub name"]),
    ],
)
def test_a_checkpoint_that_cannot_serve_is_refused(tmp_path, make, said):
    model = make(tmp_path / "model")
    line = refusal(*world().scoring(tmp_path / "run", proxy=model))
    assert str(model) in line
    assert all(part in line for part in said), line


def test_a_refused_request_can_be_mended_in_the_same_directory(tmp_path):
    refusal(*world().scoring(tmp_path / "run", proxy=tmp_path / "tpyo"))
    refusal(*world().scoring(tmp_path / "run", anchors=None))
    done(*world().scoring(tmp_path / "run"))
    assert (tmp_path / "run" / "scores.parquet").is_file()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device": "cuda"}, ["device 'cuda' cannot be used here", "choose auto or cpu"]),
        ({"device": "abacus"}, ["device 'abacus' cannot be used here", "choose auto or cpu"]),
        ({"dtype": "bfloat16", "estimator": "fd"}, ["swallow a small step", "use --dtype float32, or --estimator jvp"]),
        ({"dtype": "bfloat16", "estimator": "exact"}, ["swallow a small step", "use --dtype float32"]),
        ({"anchors": None}, ["needs anchors and got none", "give --anchors"]),
        ({"proxy": None}, ["needs a proxy", "give --proxy"]),
        ({"optimizer": "adam"}, ["second moments of a warm-up", "give the folder of `ost warmup` as --proxy"]),
        (
            {"method": "astrology"},
            ["no method 'astrology'", "installed are deita, el2n, grand, ifd, judge, less, loss, one_step, random"],
        ),
        ({"group_by": "planet"}, ["has no column 'planet'", "it has"]),
        ({"step_size": "0"}, ["step_size is 0.0", "positive and finite"]),
        ({"step_size": "nan"}, ["step_size is nan", "positive and finite"]),
        ({"fd_epsilon": "-1"}, ["fd_epsilon is -1.0", "positive and finite"]),
        ({"batch_size": "0"}, ["batch_size is 0", "at least 1"]),
        ({"shard_rows": "0"}, ["must be at least 1"]),
        ({"max_failed_share": "2"}, ["max_failed_share is 2.0", "between 0 and 1"]),
        ({"scope": "last", "last_layers": "9"}, ["has 3 layers, 9 were asked for", "lower last_layers"]),
        ({"lora_rank": "0"}, ["lora_rank 0", "at least 1"]),
        ({"max_tokens": "0"}, ["max_tokens is 0", "at least 1"]),
        ({"image_root": "/none"}, ["image root /none: no such folder", "give the folder"]),
        ({"pool": "/none.jsonl"}, ["/none.jsonl: no such file", "a pool is a JSON"]),
        ({"anchors": "/none.jsonl"}, ["/none.jsonl: no such file"]),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path, changes, said):
    line = refusal(*world().scoring(tmp_path / "run", **changes))
    assert all(part in line for part in said), line
    assert not list(tmp_path.rglob("*.parquet"))


def test_tokens_of_the_exact_step_are_refused(tmp_path):
    line = refusal(*world().scoring(tmp_path / "run", estimator="exact"), "--store-tokens")
    assert "no utility per token; use fd or jvp" in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", ["is empty", "a pool is a JSON"]),
        ("[]", ["holds no rows"]),
        ('[{"messages": 1},\n {"id": ', ["line 2: invalid JSON array", "convert it to JSONL"]),
        ('{"a": 1}\n{"b": 2}\n', ["hold no conversation", "they have the columns a", "prompt+completion"]),
        ("hello\n", ["starts with b'hello", "a pool is a JSON"]),
        ("\x1f\x8bzip", ["cannot be read"]),
    ],
)
def test_files_that_are_no_pool_are_refused_as_pool_and_as_anchors(tmp_path, content, said):
    path = tmp_path / "pool"
    path.write_bytes(content.encode("latin-1"))
    for role in ("pool", "anchors"):
        line = refusal(*world().scoring(tmp_path / "run", **{role: path}))
        assert all(part in line for part in (str(path), *said)), line


def test_anchors_that_stand_in_the_pool_are_refused_with_the_rows(tmp_path):
    line = refusal(*world().scoring(tmp_path / "run", anchors=world().pool))
    assert f"{ROWS} rows are anchors too: row 0 is anchor 's0' (same sample)" in line
    assert f"and {ROWS - 5} more; take these rows out of the pool, or draw anchors from rows that are held out" in line


def test_an_anchor_with_a_broken_image_is_refused_with_its_name(tmp_path):
    anchors = write_pool(tmp_path, 2, start=200)
    (tmp_path / "images" / "201.png").write_bytes(png(1)[:200])
    line = refusal(*world().scoring(tmp_path / "run", anchors=anchors))
    assert "anchor 's201' cannot be used: image 'images/201.png': broken or cut off" in line
    assert "mend it, or draw other anchors" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["--out"]),
        (["--out", "x", "--step-size", "small"], ["--step-size", "small", "float"]),
        (["--out", "x", "--estimator", "guess"], ["guess", "--estimator", "jvp"]),
        (["--out", "x", "--stepsize", "1"], ["--stepsize", "--step-size"]),
        (["--out", "x", "--method", "random", "--step-size", "1"], ["--step-size"]),
        (["--out", "x", "--format", "xml"], ["xml", "llava"]),
    ],
)
def test_wrong_usage_is_one_line_too_and_has_its_own_status(arguments, said):
    line = refusal("score", "pool.jsonl", *arguments, status=2)
    assert all(part in line for part in [*said, "see `ost score --help`"]), line


def test_an_unknown_command_names_those_there_are():
    line = refusal("scoer", "pool.jsonl", status=2)
    assert "no command 'scoer'" in line
    assert all(name in line for name in COMMANDS)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "run"])
def test_every_command_has_help_with_its_purpose(name):
    listed = " ".join(done("--help").out.replace("│", " ").split())
    assert f"{name} {COMMANDS[name][1]}" in listed
    assert done(name, "--help").out.startswith(f"Usage: ost {name}")


def panels(command: str) -> list[list[str]]:
    """The options of a command's help, panel by panel."""
    found: list[list[str]] = []
    for line in done(command, "--help").out.splitlines():
        if line.startswith("╭"):
            found.append([])
        elif named := re.match(r"│ [* ]? *(?:[A-Z-]+ )?(--[a-z-]+)", line):
            found[-1].append(named[1])
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_panel_of_every_command_holds_at_most_ten_options_and_its_help_an_example(name):
    first, *others = panels(name)
    assert len(first) <= 10
    assert sum(map(len, [first, *others])) <= {"score": 36, "run": 105}.get(name, 34)  # those of run are its keys
    assert f"Example: ost {name}" in done(name, "--help").out


def test_rare_options_are_set_by_name_and_come_back_from_the_config(tmp_path):
    done(*world().scoring(tmp_path / "run", scope="last", last_layers=1, shard_rows=7))
    config = tmp_path / "run" / "config.yaml"
    asked = yaml.safe_load(config.read_text())["score"]
    assert (asked["scope"]["last_layers"], asked["scoring"]["shard_rows"]) == (1, 7)
    done("score", "--config", config, "--out", tmp_path / "again", "--set", "chunk_rows=64")
    again = yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())["score"]
    assert again == asked | {"scoring": asked["scoring"] | {"chunk_rows": 64}}


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("shard_rows=many", "--set: shard_rows: Input should be a valid integer"),
        ("speed=9", "--set speed: no option of this command; there are last_layers"),
    ],
)
def test_a_rare_option_that_means_nothing_is_refused(tmp_path, option, said):
    assert said in refusal(*world().scoring(tmp_path / "run"), "--set", option)


@pytest.mark.parametrize(
    ("option", "status", "said"),
    [
        (["--candidates", "4"], 2, "exact steps are taken one after the other"),
        (["--cascade-share", "0.2"], 2, "the cascade is gone; use --estimator auto"),
        (["--landmark-budget", "0.2"], 2, "landmarks are gone; use --estimator auto"),
        (["--glimpse-layers", "1"], 2, "landmarks are gone; use --estimator auto"),
        (["--estimator", "cascade"], 2, "the cascade is gone; use --estimator auto"),
        (["--method", "second_look"], 1, "the second look is the second pass of `ost run` now"),
        (["--shard-rows", "5"], 2, "--shard-rows is a rare option now; give --set shard_rows=VALUE"),
    ],
)
def test_an_option_that_is_gone_names_what_there_is_now(tmp_path, option, status, said):
    assert said in refusal(*world().scoring(tmp_path / "run"), *option, status=status)


def test_people_are_told_what_comes_next_and_machines_are_not(tmp_path):
    outcome = done(*world().scoring(tmp_path / "run", method="random", anchors=None, proxy=None))
    assert outcome.err.splitlines()[-1] == f"next: ost select {tmp_path / 'run'} --keep 20% --out subset.jsonl"
    assert "next:" not in done("advise", scored(), "--json").err


def test_init_writes_a_file_that_run_accepts_and_in_which_every_default_may_be_put_in_force(tmp_path):
    rows = [qa(f"question {n}", "It is 7.", topic="ab"[n % 2], code=f"c{n}") for n in range(30)]
    held, job = write_jsonl(tmp_path / "heldout.jsonl", rows), tmp_path / "job.yaml"
    arguments = ["init", world().pool, "--heldout", held, "--proxy", world().proxy, "--run", tmp_path / "run"]
    assert done(*arguments, "--out", job).err.splitlines()[-1] == f"next: ost run {job} --dry-run"
    assert "exists" in refusal(*arguments, "--out", job)
    text = job.read_text()
    assert f"{ROWS} rows in {world().pool}" in text
    assert {"anchor_by: [topic]", "anchor_count: 30"} <= set(text.splitlines())
    assert "all of it: about" in done("run", job, "--dry-run").out
    assert not (tmp_path / "run").exists()
    every = tmp_path / "every.yaml"
    every.write_text(re.sub(r"^# ?(?!#)", "", text, flags=re.MULTILINE))
    assert read_job(every) == read_job(job)
    assert yaml.safe_load(every.read_text())["score"]["estimator"] == "auto"
    assert "give either --heldout" in refusal("init", world().pool, "--out", tmp_path / "other.yaml")


# Output that is taken


def test_an_output_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    for extra in ([], ["--overwrite"]):
        line = refusal(*world().scoring(tmp_path / "photos"), *extra)
        assert "in use and is no run directory; choose another --out" in line
    assert [child.name for child in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_a_folder_is_never_deleted_for_a_subset_or_for_anchors(tmp_path):
    done("score", world().pool, "--method", "random", "--out", tmp_path / "run")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_text("cat")
    for arguments in (["select", tmp_path / "run", "--keep", "2"], ["anchors", heldout(tmp_path), "--count", "10"]):
        for extra in ([], ["--overwrite"]):
            line = refusal(*arguments, "--out", photos, *extra)
            assert "is no folder that ost made" in line
            assert "--overwrite" not in line
    assert (photos / "cat.jpg").read_text() == "cat"


def test_an_output_that_is_a_file_or_lies_under_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "is a file; give a directory" in refusal(*world().scoring(tmp_path / "file"))
    assert "Not a directory" in refusal(*world().scoring(tmp_path / "file" / "run"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_finished_run_scores_nothing_refuses_another_request_and_can_be_overwritten(tmp_path):
    run = tmp_path / "run"
    done("score", world().pool, "--method", "random", "--out", run)
    before = (run / "scores.parquet").read_bytes()
    again = json.loads(done("score", world().pool, "--method", "random", "--out", run, "--json").out)
    assert (again["scored_now"], again["rows"]) == (0, ROWS)
    line = refusal("score", world().pool, "--method", "random", "--out", run, "--seed", "7")
    assert "holds a run with other score seed (0, now 7); choose another --out, or add --overwrite" in line
    assert (run / "scores.parquet").read_bytes() == before
    for seed in (7, 0, 0):  # another request, the first one, the same one afresh
        facts = json.loads(
            done("score", world().pool, "--method", "random", "--out", run, "--seed", seed, "--overwrite", "--json").out
        )
        assert facts["scored_now"] == ROWS
    assert (run / "scores.parquet").read_bytes() == before


def test_images_that_were_mended_are_seen_after_overwriting(tmp_path):
    pool = write_pool(tmp_path, 3)
    picture = tmp_path / "images" / "1.png"
    whole = picture.read_bytes()
    picture.unlink()
    assert json.loads(done(*world().scoring(tmp_path / "run", pool=pool), "--json").out)["failed"] == 1
    picture.write_bytes(whole)
    assert json.loads(done(*world().scoring(tmp_path / "run", pool=pool), "--overwrite", "--json").out)["failed"] == 0


# A run that is stopped


@functools.cache
def long_pool() -> Path:
    """Rows enough that a run is still at work when its first shard is seen."""
    return write_pool(world().pool.parent / "long", 60)


STOPPED = {"shard_rows": 2, "chunk_rows": 2, "estimator": "exact", "scope": "last", "last_layers": 1}
"""One row at a time, so that a stopped run and a whole one do the same sums."""


@functools.cache
def undisturbed() -> bytes:
    out = world().pool.parent / "undisturbed"
    done(*world().scoring(out, pool=long_pool(), **STOPPED))
    return (out / "scores.parquet").read_bytes()


def stopped_by(number: int, run: Path) -> subprocess.Popen:
    """A real process, sent a signal as soon as its first shard is on disk."""
    arguments = [str(part) for part in world().scoring(run, pool=long_pool(), **STOPPED)]
    # a job in the background of a shell is started deaf to Ctrl-C, and hands that down to its children
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heard}; import sys; from onesteptrain.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(command, env=ON_A_THREAD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(run.glob("shards.part/*.parquet")):
        time.sleep(0.005)
    process.send_signal(number)
    return process


def kept_rows(run: Path) -> int:
    return sum(pq.read_metadata(shard).num_rows for shard in run.glob("shards.part/*.parquet"))


def test_a_killed_run_ends_with_the_same_bytes_and_scores_no_row_twice(tmp_path):
    process = stopped_by(signal.SIGKILL, tmp_path / "run")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = kept_rows(tmp_path / "run")
    assert 0 < kept < 60
    assert not (tmp_path / "run" / "scores.parquet").exists()
    facts = json.loads(done(*world().scoring(tmp_path / "run", pool=long_pool(), **STOPPED), "--json").out)
    assert facts["scored_now"] == 60 - kept
    assert (tmp_path / "run" / "scores.parquet").read_bytes() == undisturbed()
    assert not (tmp_path / "run" / "shards.part").exists()


def test_an_interrupted_run_says_so_in_one_line_and_keeps_its_shards(tmp_path):
    process = stopped_by(signal.SIGINT, tmp_path / "run")
    out, err = process.communicate()
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "ost: interrupted; the same command continues"
    assert "Traceback" not in err
    kept = kept_rows(tmp_path / "run")
    assert 0 < kept < 60
    facts = json.loads(done(*world().scoring(tmp_path / "run", pool=long_pool(), **STOPPED), "--json").out)
    assert facts["scored_now"] == 60 - kept
    assert (tmp_path / "run" / "scores.parquet").read_bytes() == undisturbed()


def test_a_directory_in_which_a_run_is_at_work_is_left_to_it(tmp_path):
    run = tmp_path / "run"
    arguments = ["score", world().pool, "--method", "random", "--out", run]
    done(*arguments)
    with (run / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = refusal(*arguments, "--overwrite")
    assert f"in use by process {os.getpid()}; wait for it, or choose another --out" in line
    assert (run / "scores.parquet").is_file()


# Replaying


def test_a_run_is_replayed_from_its_config_to_the_same_bytes(tmp_path):
    config = scored() / "config.yaml"
    for number, arguments in enumerate((["--config", config], [f"--config={config}"])):
        done("score", *arguments, "--out", tmp_path / str(number))
        assert (tmp_path / str(number) / "scores.parquet").read_bytes() == (scored() / "scores.parquet").read_bytes()
        assert (tmp_path / str(number) / "config.yaml").read_bytes() == config.read_bytes()


def test_a_run_of_another_method_is_replayed_too_and_the_command_line_wins(tmp_path):
    done("score", world().pool, "--method", "random", "--seed", "3", "--out", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    done("score", "--config", config, "--out", tmp_path / "again")
    done("score", "--config", config, "--out", tmp_path / "other", "--seed", "4")
    first, again, other = ((tmp_path / name / "scores.parquet").read_bytes() for name in ("run", "again", "other"))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        (lambda text: text.replace("step_size", "stepsize"), 2, ["[stepsize]", "--step-size"]),
        (lambda text: text.replace("score:", "scores:"), 1, ["section 'scores'", "no such command"]),
        (lambda text: text.replace("name: one_step", "name: one_stop"), 1, ["no method 'one_stop'"]),
        (lambda text: text.replace("step_size: 0.001", "step_size: tiny"), 2, ["tiny", "float"]),
        (lambda text: text + "  [", 1, ["is no YAML", "line"]),
        (lambda text: "- score\n", 1, ["holds no options"]),
        (lambda text: "score: 3\n", 1, ["section 'score'"]),
        (lambda text: "", 1, ["holds no options"]),
    ],
)
def test_a_config_with_a_mistake_is_refused_in_one_line(tmp_path, change, status, said):
    config = tmp_path / "config.yaml"
    config.write_text(change((scored() / "config.yaml").read_text()))
    line = refusal("score", "--config", config, "--out", tmp_path / "run", status=status)
    assert all(part in line for part in said), line
    assert not (tmp_path / "run").exists()


def test_a_config_that_is_not_there_is_refused():
    assert "none.yaml does not exist; give the config.yaml of a run" in refusal("score", "--config", "none.yaml")
    assert "--config requires an argument" in refusal("score", "--config", status=2)


def test_what_answered_is_written_down():
    facts = json.loads((scored() / "provenance.json").read_text())
    assert (facts["rows"], facts["failed"], facts["device"], facts["dtype"]) == (ROWS, 0, "cpu", "torch.float32")
    assert set(facts["inputs"]) == {"pool", "anchors", "pictures of the anchors", "proxy"}
    assert facts["seconds"] > 0
    assert yaml.safe_load((scored() / "config.yaml").read_text())["score"]["pool"] == str(world().pool)


# Ways to score


def test_bfloat16_in_forward_mode_ranks_as_float32_does(tmp_path):
    for dtype in ("bfloat16", "float32"):
        done(*world().scoring(tmp_path / dtype, dtype=dtype, estimator="jvp"))
    found = spearmanr(scores_of(tmp_path / "bfloat16"), scores_of(tmp_path / "float32")).statistic
    assert ROWS >= 16
    assert found >= 0.95  # bfloat16 keeps 8 bits; rows closer than that may change places
    done(*world().scoring(tmp_path / "auto", dtype="bfloat16"))
    assert np.array_equal(scores_of(tmp_path / "auto"), scores_of(tmp_path / "bfloat16"))


def test_forward_mode_says_nothing_but_its_progress(tmp_path):
    """In a process of its own: PyTorch warns once, when forward mode is first used."""
    code = "import sys; from onesteptrain.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = [str(part) for part in world().scoring(tmp_path / "run", estimator="jvp")]
    command = [sys.executable, "-c", code, *arguments]
    run = subprocess.run(command, env=ON_A_THREAD, capture_output=True, text=True, check=True)
    assert "scored" in run.stdout
    assert "Warning" not in run.stderr


@pytest.mark.parametrize("scope", ["language", "last", "lora"])
def test_a_smaller_scope_scores_every_row_in_its_own_way(tmp_path, scope):
    done(*world().scoring(tmp_path / "run", scope=scope, last_layers=1))
    here = scores_of(tmp_path / "run")
    assert np.isfinite(here).all()
    assert not np.allclose(here, scores_of(scored()), rtol=0.05)


@pytest.mark.parametrize("scope", ["all", "lora"])
def test_a_warmed_up_proxy_scores_with_the_optimizer_it_was_warmed_up_with(tmp_path, scope):
    options = ["--share", "1", "--steps", "2", "--batch-size", "2", "--learning-rate", "1e-3", "--scope", scope]
    warm = tmp_path / "warm"
    facts = json.loads(done("warmup", world().pool, "--proxy", world().proxy, "--out", warm, *options, "--json").out)
    assert (facts["steps"], facts["rows"]) == (2, ROWS)
    for optimizer in ("sgd", "adam"):
        done(*world().scoring(tmp_path / optimizer, proxy=warm, optimizer=optimizer, scope=scope))
        assert np.isfinite(scores_of(tmp_path / optimizer)).all()
    assert not np.array_equal(scores_of(tmp_path / "sgd"), scores_of(tmp_path / "adam"))
    if scope == "all":
        line = refusal(*world().scoring(tmp_path / "run", proxy=warm, optimizer="adam", scope="lora"))
        assert "warm up with the same --scope" in line


# The other commands


def test_the_best_rows_are_written_as_they_stand(tmp_path):
    facts = json.loads(
        done("select", scored(), "--keep", "25%", "--prefer", "top", "--out", tmp_path / "best.jsonl", "--json").out
    )
    values = scores_of(scored())
    best = sorted(np.argsort(-values, kind="stable")[: round(ROWS / 4)])
    lines = world().pool.read_bytes().splitlines(keepends=True)
    assert (tmp_path / "best.jsonl").read_bytes() == b"".join(lines[row] for row in best)
    assert (facts["rows"], facts["pool_rows"]) == (len(best), ROWS)
    assert facts["threshold"] == values[best].min()
    said = done("select", scored(), "--keep", "3", "--by", "harm", "--out", tmp_path / "harm.jsonl").out
    assert f"kept 3 of {ROWS} rows" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--keep", "0.2"], ["keep is '0.2'", "give a share such as 20%"]),
        (["--keep", "120%"], ["keep is '120%'", "at most 100%"]),
        (["--keep", "1000"], ["keep is '1000'", f"the pool has {ROWS} rows"]),
        (["--keep", "2", "--by", "beauty"], ["no column 'beauty'", "it has uid, row, score"]),
        (["--keep", "2", "--by", "reason"], ["column 'reason'", "not numbers"]),
    ],
)
def test_a_selection_that_means_nothing_is_refused_and_writes_nothing(tmp_path, options, said):
    line = refusal("select", scored(), *options, "--out", tmp_path / "best.jsonl")
    assert all(part in line for part in said), line
    assert list(tmp_path.iterdir()) == []


def test_a_selection_is_refused_where_pool_scores_or_place_do_not_fit(tmp_path):
    shutil.copytree(world().pool.parent / "images", tmp_path / "images")
    pool, run, best = tmp_path / "pool.jsonl", tmp_path / "run", tmp_path / "best.jsonl"
    shutil.copy(world().pool, pool)
    done("score", pool, "--method", "random", "--out", run)
    assert "is the pool itself" in refusal("select", run, "--keep", "2", "--out", pool, "--overwrite")
    best.write_text("mine")
    assert "exists" in refusal("select", run, "--keep", "2", "--out", best)
    assert best.read_text() == "mine"
    pool.write_text(pool.read_text().replace("It is seven", "It is eight"))
    assert "has changed since" in refusal("select", run, "--keep", "2", "--out", tmp_path / "new.jsonl")
    pool.unlink()
    assert "does not exist; put it back" in refusal("select", run, "--keep", "2", "--out", tmp_path / "new.jsonl")
    (run / "scores.parquet").unlink()
    assert "let the scoring finish" in refusal("select", run, "--keep", "2", "--out", tmp_path / "new.jsonl")
    assert "score the pool first" in refusal(
        "select", tmp_path / "none", "--keep", "2", "--out", tmp_path / "new.jsonl"
    )


def heldout(folder: Path) -> Path:
    rows = [qa(f"question {n}", str(n), id=f"h{n}", topic="ab"[n % 5 == 0], level=n % 2) for n in range(40)]
    return write_json(folder / "heldout.json", rows)


def test_anchors_are_drawn_in_proportion_from_what_is_held_out(tmp_path):
    out = tmp_path / "anchors.json"
    arguments = ["anchors", heldout(tmp_path), "--out", out, "--count", "10", "--by", "topic", "level"]
    facts = json.loads(done(*arguments, "--pool", world().pool, "--json").out)
    assert facts == {"anchors": 10, "out": str(out), "image_root": str(tmp_path)}
    rows = json.loads(out.read_text())
    held = json.loads((tmp_path / "heldout.json").read_text())
    assert [row for row in held if row in rows] == rows
    assert [sum(row["topic"] == topic for row in rows) for topic in "ab"] == [8, 2]
    assert [sum(row["level"] == level for row in rows) for level in (0, 1)] == [5, 5]
    first = out.read_bytes()
    done(*arguments, "--overwrite")
    assert out.read_bytes() == first
    done(*arguments, "--overwrite", "--seed", "1")
    assert out.read_bytes() != first


def test_anchors_that_cannot_be_drawn_are_refused(tmp_path):
    held, out = heldout(tmp_path), tmp_path / "anchors.json"
    pool = write_jsonl(tmp_path / "pool.jsonl", [qa("something"), qa("QUESTION 7", "other")])
    line = refusal("anchors", held, "--out", out, "--count", "40", "--pool", pool)
    assert "row 1 is anchor 'h7' (same question and image, other answer)" in line
    assert "40 rows can be used; ask for fewer" in refusal("anchors", held, "--out", out, "--count", "41")
    line = refusal("anchors", held, "--out", out, "--count", "4", "--by", "colour")
    assert "no row has the column colour; there are" in line
    assert "must be at least 1" in refusal("anchors", held, "--out", out, "--count", "0")
    assert not out.exists()


def test_an_audit_is_valid_json_and_finds_that_tiny_steps_agree(tmp_path):
    out = tmp_path / "deep" / "audit.json"
    options = [
        "--rows",
        "8",
        "--step-sizes",
        "1e-4",
        "1e-3",
        "--dtype",
        "float64",
        "--scope",
        "last",
        "--set",
        "last_layers=1",
    ]
    arguments = ["audit", world().pool, "--anchors", world().anchors, "--proxy", world().proxy, "--out", out, *options]
    said = done(*arguments).out
    assert "the first-order score holds (rank correlation at least 0.99) up to step size 1e-03" in said
    facts = json.loads(out.read_text())
    assert [size["step_size"] for size in facts["sizes"]] == [1e-4, 1e-3]
    for size in facts["sizes"]:
        assert size["spearman"]["value"] == pytest.approx(1)
        assert size["spearman"]["low"] <= size["spearman"]["value"] + 1e-12  # round-off
    assert (facts["rows"], facts["failed"], facts["method"]["optimizer"]) == (8, 0, "sgd")
    before = out.read_bytes()
    assert "exists; give another path, or add --overwrite" in refusal(*arguments)
    assert json.loads(done(*arguments, "--overwrite", "--json").out) == facts
    assert out.read_bytes() == before


def test_an_audit_of_steps_that_cannot_be_measured_gives_null_and_no_advice_to_trust_them(tmp_path):
    out = tmp_path / "audit.json"
    options = ["--rows", "8", "--step-sizes", "1e-30", "1e30", "--scope", "last", "--set", "last_layers=1"]
    said = done(
        "audit", world().pool, "--anchors", world().anchors, "--proxy", world().proxy, "--out", out, *options
    ).out
    assert "no step size reaches rank correlation 0.99" in said
    for size in json.loads(out.read_text())["sizes"]:
        assert size["spearman"] == {"value": None, "low": None, "high": None}
        assert size["relative_error"] is None


def test_an_audit_that_means_nothing_is_refused(tmp_path):
    out = tmp_path / "audit.json"
    start = ["audit", world().pool, "--anchors", world().anchors, "--proxy", world().proxy, "--out", out]
    assert "choose auto, fd or jvp" in refusal(*start, "--estimator", "exact")
    assert "an audit needs at least 8" in refusal(*start, "--rows", "3")
    assert "give positive learning rates" in refusal(*start, "--step-sizes", "0")
    assert not out.exists()


def test_the_methods_are_listed_with_their_options():
    facts = json.loads(done("methods", "--json").out)
    assert {"one_step", "random"} <= set(facts)
    assert facts["one_step"]["options"]["step_size"] == 1e-3
    assert "arXiv:2605.07488" in facts["one_step"]["purpose"]
    assert "step_size = 0.001" in done("methods").out


def test_a_warm_up_that_cannot_work_is_refused_and_writes_nothing(tmp_path):
    start = ["warmup", world().pool, "--proxy", world().proxy, "--out", tmp_path / "warm"]
    assert "share is 0.0" in refusal(*start, "--share", "0")
    assert "raise --share" in refusal(*start, "--share", "1e-9")
    assert "learning_rate is -1.0" in refusal(*start, "--learning-rate", "-1")
    assert list(tmp_path.iterdir()) == []


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr("onesteptrain.cli.build_app", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        ost("methods")


def test_rows_that_move_to_another_folder_say_where_their_image_paths_start(tmp_path):
    source = heldout(tmp_path)
    elsewhere = tmp_path / "other" / "anchors.json"
    assert str(tmp_path) in done("anchors", source, "--out", elsewhere, "--count", "10").out.splitlines()[-1]
    assert len(done("anchors", source, "--out", tmp_path / "beside.json", "--count", "10").out.splitlines()) == 1


def test_options_that_no_score_depends_on_may_change_when_a_run_continues(tmp_path):
    run = tmp_path / "run"
    done(*world().scoring(run))
    before = (run / "scores.parquet").read_bytes()
    done(*world().scoring(run, chunk_rows=7, max_failed_share=0.9))
    assert (run / "scores.parquet").read_bytes() == before
    assert "other" in refusal(*world().scoring(run, step_size=0.5))
