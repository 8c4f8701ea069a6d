"""What is said of progress."""

from __future__ import annotations

import itertools

from transformers.utils import logging

from onesteptrain.jobs import progress as progressing
from onesteptrain.jobs.scoring import ProxyOptions
from onesteptrain.storage.phases import begin_phase


def test_work_in_stages_is_timed_stage_by_stage(monkeypatch, capsys):
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr(progressing.time, "monotonic", lambda: next(clock))
    with progressing.progress_bar("scoring") as progress:
        for done, total in [(16, 120), (56, 120), (120, 120), (1, 1), (20, 60), (60, 60), (30, 60)]:
            progress(done, total)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "scoring: 56/120 (2.0 rows/s, 32 s left)"  # 40 rows in 20 s: the clock is read twice a report
    assert lines[3:5] == ["scoring: 1/1", "scoring: 20/60"]  # a stage begins: there is no rate yet
    assert lines[5] == "scoring: 60/60 (2.0 rows/s)"
    assert lines[6] == "scoring: 30/60"


def test_work_that_is_done_is_said_once(capsys):
    with progressing.progress_bar("reading") as progress:
        for done in [1, *[234] * 52]:
            progress(done, 234)
        progress(3, 234)  # another stage begins
        progress(234, 234)
    lines = [line.split(" (")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["reading: 1/234", "reading: 234/234", "reading: 234/234"]


def test_a_phase_is_named_at_once_and_only_where_somebody_listens(capsys):
    begin_phase("unheard")
    with progressing.progress_bar("scoring"):
        begin_phase("loading the proxy")
        assert capsys.readouterr().err == "loading the proxy\n"
        begin_phase("anchor gradient")
    begin_phase("unheard")
    assert capsys.readouterr().err == "anchor gradient\n"


def test_a_forecast_is_the_mean_time_of_the_first_steps_times_their_number(monkeypatch, capsys):
    clock = itertools.count(0.0, 12.0)  # read at the first and at the fifth report
    monkeypatch.setattr(progressing.time, "monotonic", lambda: next(clock))
    said, reports = [], []
    report = progressing.forecasting(lambda done, total: reports.append(done), said.append)
    for done in range(1, 41):
        report(done, 40)
    assert said == [3.0 * 40]  # three seconds a step
    assert reports == list(range(1, 41))
    for done in (1, 2):
        report(done, 2)  # too few to say anything
    assert len(said) == 1


def test_loading_a_model_draws_no_bar_of_the_library_and_leaves_its_setting(capfd, tiny_checkpoint):
    assert logging.is_progress_bar_enabled()
    with progressing.progress_bar("scoring"):
        ProxyOptions(str(tiny_checkpoint)).load().save(checkpoint_again := tiny_checkpoint.parent / "again")
    assert capfd.readouterr().err == "loading the proxy\n"
    assert (checkpoint_again / "config.json").exists()
    assert logging.is_progress_bar_enabled()
