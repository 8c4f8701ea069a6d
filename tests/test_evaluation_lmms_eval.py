"""lmms-eval as a program: the command line for a checkpoint, and its real logs read back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onesteptrain.errors import ConfigError, MissingExtraError, RunError
from onesteptrain.evaluation import EvaluateOptions
from onesteptrain.evaluation.lmms_eval import TASKS, Program, command, read_log, run_lmms_eval
from onesteptrain.evaluation.results import Counting, summarise
from onesteptrain.evaluation.suites import SUITES
from onesteptrain.evaluation.suites.reasoning import wemath_metrics as metrics
from onesteptrain.proxy import LoadOptions
from tests.building import checkpoint
from tests.commands import refusal

LOGS = Path(__file__).parent / "lmms_eval_logs"
VISION, VISTA = TASKS["mathvision", "testmini"], TASKS["mathvista", "testmini"]
WE, LOGIC = TASKS["wemath", "testmini"], TASKS["logicvista", "test"]


@pytest.fixture
def logs(tmp_path):
    """The logs where lmms-eval puts them: in a folder that is named after the model."""
    shutil.copytree(LOGS, tmp_path / "logs" / "models__tiny")
    return tmp_path / "logs"


def test_every_split_of_every_suite_has_a_task():
    assert set(TASKS) == {(name, split) for name, suite in SUITES.items() for split in suite.splits}


def test_a_checkpoint_gets_the_code_that_runs_its_architecture(tmp_path):
    options = EvaluateOptions(max_new_tokens=64, batch_size=8)
    path = str(checkpoint("qwen3_vl"))
    line = command(Program("/env/bin/lmms-eval"), VISION, path, tmp_path, options, LoadOptions(device="cpu"))
    assert line == [
        "/env/bin/lmms-eval",
        *("--model", "qwen3_vl"),
        *("--model_args", f"pretrained={path},device=cpu,device_map=cpu"),
        *("--tasks", "mathvision_testmini"),
        *("--batch_size", "8"),
        *("--gen_kwargs", "max_new_tokens=64"),
        *("--use_cache", str(tmp_path / "lmms-eval-cache")),
        *("--output_path", str(tmp_path / "lmms-eval")),
        "--log_samples",
    ]
    other = command(Program("python3"), LOGIC, str(checkpoint("internvl")), tmp_path, options, LoadOptions())
    assert other[:5] == ["python3", "-m", "lmms_eval", "--model", "internvl_hf"]
    assert other[other.index("--batch_size") + 1] == "1"  # all that internvl_hf takes


def test_an_unknown_architecture_needs_a_name_and_odd_options_are_refused(tmp_path):
    path = str(checkpoint("smolvlm"))
    with pytest.raises(ConfigError, match=r"is a smolvlm, .* name it with --lmms-model"):
        command(Program("x"), VISION, path, tmp_path, EvaluateOptions(), LoadOptions())
    named = command(Program("x", "huggingface"), VISION, path, tmp_path, EvaluateOptions(), LoadOptions())
    assert named[2] == "huggingface"
    with pytest.raises(ConfigError, match="device and attention only"):
        command(Program("x"), VISION, path, tmp_path, EvaluateOptions(), LoadOptions(dtype="float32"))
    with pytest.raises(ConfigError, match="holds a comma or an equals sign"):
        command(Program("x"), VISION, "models/a=b", tmp_path, EvaluateOptions(), LoadOptions())


def test_the_verdicts_in_the_logs_are_lmms_evals_own(logs):
    vision = read_log(logs, VISION, max_new_tokens=24)
    assert [(one.uid, one.answer, one.prediction, one.correct) for one in vision] == [
        ("mathvision_testmini/0", "3", "\\boxed{B}", False),
        ("mathvision_testmini/1", "B", "\\boxed{B}", True),
        ("mathvision_testmini/2", "3", "\\boxed{B}", False),
    ]
    assert [(one.extracted, one.correct) for one in read_log(logs, LOGIC, max_new_tokens=24)] == [
        ("C", True),
        ("C", False),
    ]


def test_a_reply_that_reached_the_limit_counts_as_cut_off(logs):
    assert [one.finished for one in read_log(logs, VISION, max_new_tokens=24)] == [True] * 3
    assert [one.finished for one in read_log(logs, VISION, max_new_tokens=10)] == [False] * 3


def test_the_wemath_measures_come_out_of_the_log_too(logs):
    graded = read_log(logs, WE, max_new_tokens=24)
    assert [one.fields["key"] for one in graded] == ["2steps_1", "2steps_2", "2steps_multi"] * 2
    found = summarise(graded, Counting(metrics=metrics)).metrics
    assert (found["problems"], found["score_strict"]) == (2, 100)  # lmms-eval divides by all 525 problems


def test_a_judge_that_found_no_answer_at_all_is_no_result(logs):
    with pytest.raises(ConfigError, match="the judge of lmms-eval has found no answer in any reply"):
        read_log(logs, VISTA, max_new_tokens=24)


def test_a_log_of_another_form_is_refused_in_one_line(logs):
    path = logs / "models__tiny" / "20261124_144430_samples_logicvista_reasoning.jsonl"
    path.write_text('{"doc_id": 0, "target": "C"}\n')
    with pytest.raises(RunError, match=r"not a log of lmms-eval 0\.7\.3"):
        read_log(logs, LOGIC, max_new_tokens=24)


def test_mathvista_is_refused_before_anything_runs_when_its_judge_has_no_key(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="set OPENAI_API_KEY, or leave out --evaluator"):
        run_lmms_eval(
            Program(sys.executable), VISTA, str(checkpoint("qwen3_vl")), tmp_path, EvaluateOptions(), LoadOptions()
        )


def test_a_missing_program_and_a_python_without_lmms_eval_are_refused_in_one_line(tmp_path, tiny_checkpoint):
    start = ["evaluate", "--suite", "mathvision", "--evaluator", "lmms-eval", "--model", tiny_checkpoint]
    line = refusal(*start, "--out", tmp_path / "a", "--lmms-eval", tmp_path / "no-such-program")
    assert "there is no program" in line
    assert "lmms-eval==0.7.3" in line
    line = refusal(*start, "--out", tmp_path / "b", "--lmms-eval", sys.executable)
    assert "has no task mathvision_test: " in line
    assert "No module named lmms_eval" in line
    line = refusal(*start, "--out", tmp_path / "c", "--suite-path", tmp_path)
    assert "drop --suite-path" in line


def test_a_program_is_looked_for_on_the_path(tmp_path):
    with pytest.raises(MissingExtraError):
        run_lmms_eval(
            Program("no-such-lmms-eval"),
            VISION,
            str(checkpoint("qwen3_vl")),
            tmp_path,
            EvaluateOptions(),
            LoadOptions(),
        )


@pytest.mark.skipif("OST_LMMS_EVAL" not in os.environ, reason="OST_LMMS_EVAL names no installed lmms-eval")
def test_the_installed_lmms_eval_has_every_task_and_takes_every_flag(tmp_path):
    program = os.environ["OST_LMMS_EVAL"]
    listed = subprocess.run([program, "--tasks", "list"], capture_output=True, text=True, check=True).stdout
    assert {task.name for task in TASKS.values()} <= {line.strip(" -") for line in listed.splitlines()}
    line = command(Program(program), VISION, str(checkpoint("qwen3_vl")), tmp_path, EvaluateOptions(), LoadOptions())
    told = subprocess.run([program, "eval", "--help"], capture_output=True, text=True, check=True).stdout
    assert [flag for flag in line if flag.startswith("--") and flag not in told] == []
