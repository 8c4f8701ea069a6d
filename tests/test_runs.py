"""Run directories and whole files: who may write where, and what is kept."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from onesteptrain.errors import ConfigError, RunError
from onesteptrain.storage.atomic import whole, whole_folder, write_json, write_text
from onesteptrain.storage.fingerprints import fingerprint
from onesteptrain.storage.ownership import MARKER, note_made, passing
from onesteptrain.storage.run_directory import Run, begin_run

CONFIG = {"score": {"method": "random", "step": 0.5, "by": ["a"]}}
INPUTS = {"pool": "abc"}

HOLD = """
import sys
from pathlib import Path
from onesteptrain.storage.ownership import MARKER, note_made, passing
from onesteptrain.storage.run_directory import begin_run
with begin_run(Path(sys.argv[1]), {"score": {"method": "random", "step": 0.5, "by": ["a"]}}, {"pool": "abc"}):
    print("held", flush=True)
    sys.stdin.read()
"""


def begun(path, config=CONFIG, inputs=INPUTS, **options):
    """Begin a run and leave an artefact in it."""
    with begin_run(path, config, inputs, **options) as run:
        artefacts = sorted(child.name for child in path.iterdir() if child.name.endswith(".parquet"))
        write_text(path / "scores.parquet", "scores")
    return run, artefacts


def test_a_run_keeps_the_request_and_what_answered_it(tmp_path):
    run, _ = begun(tmp_path / "deep" / "run")
    assert run.config == CONFIG
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == CONFIG
    facts = json.loads((run.path / "provenance.json").read_text())
    assert facts["inputs"] == INPUTS
    assert {"torch", "transformers", "onesteptrain"} <= set(facts["versions"])
    run.record(rows=3)
    assert run.provenance == facts | {"rows": 3}


def test_the_same_request_continues(tmp_path):
    begun(tmp_path / "run")
    before = (tmp_path / "run" / "provenance.json").read_bytes()
    _, artefacts = begun(tmp_path / "run")
    assert artefacts == ["scores.parquet"]
    assert (tmp_path / "run" / "provenance.json").read_bytes() == before


@pytest.mark.parametrize(
    ("config", "inputs", "named"),
    [
        ({"score": CONFIG["score"] | {"step": 0.25}}, INPUTS, r"score step \(0\.5, now 0\.25\)"),
        ({"score": CONFIG["score"] | {"seed": 1}}, INPUTS, r"score seed \(None, now 1\)"),
        ({"score": {"method": "random", "step": 0.5}}, INPUTS, r"score by \(\['a'\], now None\)"),
        (CONFIG, {"pool": "abd"}, "content of pool"),
    ],
)
def test_another_request_is_refused_and_named_and_nothing_is_lost(tmp_path, config, inputs, named):
    begun(tmp_path / "run")
    before = {child: child.read_bytes() for child in (tmp_path / "run").iterdir()}
    with pytest.raises(RunError, match=named):
        begun(tmp_path / "run", config, inputs)
    assert {child: child.read_bytes() for child in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("config", [CONFIG, {"score": {"method": "other"}}])
def test_overwriting_starts_afresh_whatever_the_request(tmp_path, config):
    begun(tmp_path / "run")
    write_text(tmp_path / "run" / "shards.part" / "0.parquet", "rows")
    run, artefacts = begun(tmp_path / "run", config, overwrite=True)
    assert artefacts == []
    assert not (run.path / "shards.part").exists()
    assert run.config == config


def test_a_folder_of_somebody_else_is_refused_even_when_overwriting(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="in use and is no run directory"):
            begun(tmp_path / "photos", overwrite=overwrite)
    assert [child.name for child in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunError, match="is a file; give a directory"):
        begun(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run").read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path):
    run, _ = begun(tmp_path)
    assert run.config == CONFIG


def test_a_directory_in_which_another_process_works_is_refused_with_its_number(tmp_path):
    path = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        for overwrite in (False, True):
            with pytest.raises(RunError, match=f"in use by process {holder.pid}; wait for it"):
                begun(path, overwrite=overwrite)
        holder.communicate("")
    assert begun(path)[1] == []  # the lock goes with its process


def test_a_request_that_was_refused_at_once_does_not_keep_the_next_one_out(tmp_path):
    with pytest.raises(ConfigError), begin_run(tmp_path / "run", CONFIG, INPUTS):
        raise ConfigError("there is no such proxy")
    other = {"score": {"method": "mended"}}
    assert begun(tmp_path / "run", other)[0].config == other


def test_a_refused_run_that_has_made_something_keeps_it(tmp_path):
    def fail_late():
        with begin_run(tmp_path / "run", CONFIG, INPUTS):
            (tmp_path / "run" / "shards.part").mkdir()
            raise ConfigError("the disk is gone")

    with pytest.raises(ConfigError):
        fail_late()
    assert (tmp_path / "run" / "shards.part").is_dir()
    with pytest.raises(RunError, match="other"):
        begun(tmp_path / "run", {"score": {"method": "other"}})


def test_a_folder_without_a_request_is_no_run(tmp_path):
    with pytest.raises(RunError, match="is no run directory"):
        _ = Run(tmp_path).config


def test_a_fingerprint_changes_with_content_and_names_and_not_with_place_or_time(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "a").write_text("1")
        (tmp_path / name / "sub" / "b").write_text("2")
    first = fingerprint(tmp_path / "one")
    assert first == fingerprint(tmp_path / "two")
    (tmp_path / "two" / "a").write_text("3")
    assert first != fingerprint(tmp_path / "two")
    (tmp_path / "one" / "a").rename(tmp_path / "one" / "c")
    assert first != fingerprint(tmp_path / "one")
    assert fingerprint(tmp_path / "one" / "c") != fingerprint(tmp_path / "one" / "sub" / "b")


def test_a_hub_name_stands_for_itself():
    assert fingerprint("OpenGVLab/none-such") == "name:OpenGVLab/none-such"


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", "new \ud800")
    assert (tmp_path / "file").read_text() == "old"
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file", float("nan"))
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("folder", [False, True])
def test_what_is_written_whole_takes_the_place_of_the_old_or_leaves_it(tmp_path, folder):
    out = tmp_path / "new" / "out"

    def write(text, *, fail=False):
        with whole(out) as part:
            if folder:
                part.mkdir()
            (part / "text" if folder else part).write_text(text)
            if fail:
                raise KeyboardInterrupt

    write("old")
    with pytest.raises(KeyboardInterrupt):
        write("half", fail=True)
    assert (out / "text" if folder else out).read_text() == "old"
    passing(out).write_text("left by a process that was killed")
    write("new")
    assert (out / "text" if folder else out).read_text() == "new"
    assert list((tmp_path / "new").iterdir()) == [out]


# What is ours


@pytest.mark.parametrize("config", [CONFIG, {"score": {"method": "other"}}])
def test_a_foreign_project_with_a_request_of_that_name_is_never_deleted_nor_is_that_suggested(tmp_path, config):
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)
    (project / "src" / "main.py").write_text("code")
    (project / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    before = tree(project)
    for overwrite in (False, True):
        with pytest.raises(RunError) as refused:
            begun(project, config, overwrite=overwrite)
        assert "overwrite" not in str(refused.value)
    assert tree(project) == before


def test_overwriting_deletes_what_runs_have_made_and_nothing_else(tmp_path):
    out = tmp_path / "run"
    with begin_run(out, CONFIG, INPUTS):
        write_text(out / "deep" / "made", "ours")
        with whole_folder(out / "warmup", kind="a warm-up", overwrite=False) as part:
            (part / "weights").write_text("ours")
        with begin_run(out / "score", CONFIG, INPUTS):
            write_text(out / "score" / "scores.parquet", "ours")
        note_made(out / "steps", tree=True)
        (out / "steps").mkdir()
        (out / "steps" / "state").write_text("ours")
    foreign = {"notes.txt", "deep/notes.txt", "warmup/notes.txt", "score/notes.txt", "own/notes.txt"}
    for name in foreign:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    for method in ("other", "third"):
        with begin_run(out, {"score": {"method": method}}, INPUTS, overwrite=True):
            runs = {MARKER, ".lock", "config.yaml", "provenance.json"}
            assert {name for name in tree(out) if Path(name).name not in runs} == foreign


def test_a_run_that_was_killed_leaves_nothing_that_overwriting_does_not_delete(tmp_path):
    out = tmp_path / "run"
    code = KILLED.replace("OUT", str(out))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert {"made", passing(Path("half")).name} <= {path.name for path in out.iterdir()}
    (out / MARKER).open("a").write('\n"notes')  # as a kill can cut a line
    (out / "notes.txt").write_text("mine")
    begun(out)
    begun(out, overwrite=True)
    assert set(tree(out)) == {MARKER, ".lock", "config.yaml", "provenance.json", "scores.parquet", "notes.txt"}


KILLED = """
import os, signal
from pathlib import Path
from onesteptrain.storage.atomic import whole, write_text
from onesteptrain.storage.ownership import MARKER, note_made, passing
from onesteptrain.storage.run_directory import begin_run
with begin_run(Path("OUT"), {"score": {"method": "random", "step": 0.5, "by": ["a"]}}, {"pool": "abc"}):
    write_text(Path("OUT") / "made", "ours")
    with whole(Path("OUT") / "half") as part:
        part.write_text("ha")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_names_in_a_marker_that_leave_its_folder_delete_nothing(tmp_path):
    (tmp_path / "own").mkdir()
    for name in ("a", "own/b"):
        (tmp_path / name).write_text("mine")
    begun(tmp_path / "run")
    (tmp_path / "run" / "link").symlink_to(tmp_path / "own")
    with (tmp_path / "run" / MARKER).open("a") as marker:
        for name in ("../a", str(tmp_path / "a"), "link/b", "link/", "../own/", "x/../../a"):
            marker.write("\n" + json.dumps(name))
    begun(tmp_path / "run", overwrite=True)
    assert {"a": b"mine", "own/b": b"mine"}.items() <= tree(tmp_path).items()


@pytest.mark.parametrize("there", ["project", "another kind", "file"])
def test_a_folder_replaces_only_one_of_ours_and_of_its_kind(tmp_path, there):
    out = tmp_path / "out"
    if there == "file":
        out.write_text("mine")
    elif there == "project":
        out.mkdir()
        (out / "train.json").write_text("mine")
    else:
        make_folder(out, kind="a warm-up")
    before = tree(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(RunError) as refused:
            make_folder(out, overwrite=overwrite)
        assert "overwrite" not in str(refused.value)
    assert tree(tmp_path) == before


def test_a_folder_that_is_replaced_keeps_what_others_have_put_there(tmp_path):
    make_folder(tmp_path / "out", made="old")
    (tmp_path / "out" / "notes").mkdir()
    (tmp_path / "out" / "notes" / "a").write_text("mine")
    (tmp_path / "out" / "new").write_text("mine too")
    make_folder(tmp_path / "out", made="new", overwrite=True)
    found = {name: text for name, text in tree(tmp_path / "out").items() if name != MARKER}
    assert found == {"new": b"ours", "new.kept": b"mine too", "notes/a": b"mine"}
    make_folder(tmp_path / "out", made="newer", overwrite=True)
    assert set(tree(tmp_path / "out")) == {MARKER, "newer", "new.kept", "notes/a"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_fingerprint_does_not_depend_on_the_list_of_what_we_made(tmp_path):
    make_folder(tmp_path / "out")
    before = fingerprint(tmp_path / "out")
    note_made(tmp_path / "out" / "more")
    assert fingerprint(tmp_path / "out") == before


def make_folder(out, *, kind="a target", made="made", overwrite=False):
    with whole_folder(out, kind=kind, overwrite=overwrite) as part:
        (part / made).write_text("ours")


def tree(folder):
    """All files below a folder, by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
