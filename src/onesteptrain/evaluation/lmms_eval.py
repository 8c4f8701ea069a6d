"""Let lmms-eval evaluate a checkpoint, and read what it leaves back as graded questions.

lmms-eval pins packages that this one cannot work with (it takes math-verify down to 0.1), so it is never imported: it
is a program in an environment of its own. Written against version 0.7.3: its task and model names, its command line
and its logs (`--log_samples`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from onesteptrain.errors import ConfigError, MissingExtraError, RunError
from onesteptrain.evaluation.answers import extract_answer
from onesteptrain.evaluation.evaluating import EvaluateOptions
from onesteptrain.evaluation.results import Graded
from onesteptrain.evaluation.suites import SuiteName
from onesteptrain.proxy import LoadOptions
from onesteptrain.storage.ownership import note_made

_OURS = LoadOptions()
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_ONE_AT_A_TIME = {"internvl_hf"}
"""Models of lmms-eval that refuse a larger batch."""

_FIELDS = {
    *("ID", "key", "knowledge concept"),
    *("question_type", "answer_type", "category", "context", "grade", "language", "skills", "source", "task"),
}
"""Columns of the benchmarks that are kept with the results."""

_MODELS = {
    "internvl": "internvl_hf",
    "llava": "llava_hf",
    "llava_next": "llava_hf",
    "llava_onevision": "llava_hf",
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "qwen3_vl_moe": "qwen3_vl",
}
"""Model type of a checkpoint's config.json, and what lmms-eval calls the code that runs it."""


class Task(NamedTuple):
    """A task of lmms-eval, and where its log has the verdict."""

    name: str
    verdict: Callable[[Mapping[str, Any]], bool]
    facts: str | None = None
    """The part of a logged row that holds the columns of the benchmark."""


def _scored(row: Mapping[str, Any]) -> bool:
    return float(row["acc_score"]) == 1.0


def _standard(row: Mapping[str, Any]) -> bool:
    return bool(row["mathvision_standard_eval"]["scores"][0])


def _judged(row: Mapping[str, Any]) -> bool:
    return bool(row["llm_as_judge_eval"]["true_false"])


TASKS: dict[tuple[SuiteName, str], Task] = {
    ("mathvision", "test"): Task("mathvision_test", _standard),
    ("mathvision", "testmini"): Task("mathvision_testmini", _standard),
    ("mathvista", "testmini"): Task("mathvista_testmini_solution", _judged, "llm_as_judge_eval"),
    ("wemath", "testmini"): Task("wemath_testmini_reasoning", _scored, "wemath_strict"),
    ("logicvista", "test"): Task("logicvista_reasoning", _scored),
}


@dataclass(frozen=True)
class Program:
    """lmms-eval as it is installed."""

    path: str
    """Its executable, or the Python of its environment."""

    model: str | None = None
    """What it calls the code that runs the checkpoint; by default told from the checkpoint's config.json."""


def run_lmms_eval(
    program: Program, task: Task, checkpoint: str, folder: Path, options: EvaluateOptions, load: LoadOptions
) -> list[Graded]:
    """Evaluate a checkpoint on one task; replies in FOLDER/lmms-eval-cache are not asked for again.

    Args:
        program: How lmms-eval is called.
        task: What it evaluates.
        checkpoint: Folder or hub name.
        folder: Where its files and its log go.
        options: Longest reply and batch size.
        load: Device and attention kernel; the rest lmms-eval decides by itself.

    Returns:
        The questions in the order of the task, right or wrong by lmms-eval's own rules.

    Raises:
        ConfigError: an option cannot be passed on, the task is not there, or it needs a judge and has none.
        MissingExtraError: there is no such program.
        RunError: lmms-eval has failed.
    """
    line = command(program, task, checkpoint, folder, options, load)
    _refuse_missing(program, task, folder)
    shutil.rmtree(folder / "lmms-eval", ignore_errors=True)  # the logs of an earlier call
    log = folder / "lmms-eval.log"
    note_made(folder / "lmms-eval", tree=True)
    note_made(log)
    _call(line, log)
    try:
        return read_log(folder / "lmms-eval", task, max_new_tokens=options.max_new_tokens)
    except FileNotFoundError as error:  # it ends with status 0 whatever happens
        raise RunError(f"lmms-eval has written no results: {_last_words(log)}; see {log}") from error


def command(
    program: Program, task: Task, checkpoint: str, folder: Path, options: EvaluateOptions, load: LoadOptions
) -> list[str]:
    """The command line for one task.

    Raises:
        ConfigError: an option cannot be passed on.
    """
    if LoadOptions(device=load.device, attention=load.attention) != load:
        raise ConfigError("lmms-eval takes device and attention only; leave out the other loading options")
    if any(mark in checkpoint for mark in ",="):
        raise ConfigError(
            f"lmms-eval cannot read the name {checkpoint!r}: it holds a comma or an equals sign; rename it"
        )
    model = program.model or _model_name(checkpoint)
    arguments = {"pretrained": checkpoint}
    if load.device != _OURS.device:
        arguments |= {"device": load.device, "device_map": load.device}
    if load.attention != _OURS.attention:
        arguments |= {"attn_implementation": load.attention}
    return [
        *_program(program),
        *("--model", model),
        *("--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())),
        *("--tasks", task.name),
        *("--batch_size", str(1 if model in _ONE_AT_A_TIME else options.batch_size)),
        *("--gen_kwargs", f"max_new_tokens={options.max_new_tokens}"),
        *("--use_cache", str(folder / "lmms-eval-cache")),
        *("--output_path", str(folder / "lmms-eval")),
        "--log_samples",
    ]


def read_log(folder: Path, task: Task, *, max_new_tokens: int) -> list[Graded]:
    """The graded questions in what `--log_samples` has written.

    Args:
        folder: The `--output_path`.
        task: What was evaluated.
        max_new_tokens: Limit of a reply; one that reached it was cut off.

    Raises:
        ConfigError: the judge that the task needs has found no answer at all.
        FileNotFoundError: there is no log of this task.
        RunError: a row is not as version 0.7.3 writes it.
    """
    logs = sorted(folder.glob(f"*/*_samples_{task.name}.jsonl"))
    if not logs:
        raise FileNotFoundError(folder)
    lines = [line for line in logs[-1].read_text(encoding="utf-8").split("\n") if line]
    try:
        rows = sorted((json.loads(line) for line in lines), key=lambda row: int(row["doc_id"]))
        graded = [_graded(row, task, max_new_tokens) for row in rows]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RunError(f"{logs[-1]}: not a log of lmms-eval 0.7.3 ({error!r}); install that version") from error
    judged = [row[task.facts] for row in rows if task.facts and "extraction" in row[task.facts]]
    if judged and not any(row["extraction"] for row in judged):
        raise ConfigError("the judge of lmms-eval has found no answer in any reply; check its key and address")
    return graded


def _graded(row: Mapping[str, Any], task: Task, max_new_tokens: int) -> Graded:
    replies = row.get("resps", row["filtered_resps"])
    reply = str(replies[0] if isinstance(replies, list) else replies)
    counts = [count["output_tokens"] for count in row.get("token_counts") or [] if count]
    facts = row[task.facts] if task.facts else {}
    finished = not counts or counts[0] < max_new_tokens
    return Graded(
        uid=f"{task.name}/{row['doc_id']}",
        question=str(row["input"]),
        prediction=reply,
        extracted=facts.get("extraction") or extract_answer(reply, finished=finished),
        answer=str(row["target"]),
        correct=task.verdict(row),
        finished=finished,
        reason=None,
        fields={name: value for name, value in facts.items() if name in _FIELDS},
    )


def _program(program: Program) -> list[str]:
    return [program.path, *(["-m", "lmms_eval"] if Path(program.path).name.startswith("python") else [])]


def _model_name(checkpoint: str) -> str:
    from transformers import PretrainedConfig

    try:
        kind = PretrainedConfig.get_config_dict(checkpoint)[0].get("model_type")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{checkpoint}: its config.json cannot be read ({str(error)[:100]}); give a checkpoint"
        ) from error
    if kind not in _MODELS:
        raise ConfigError(
            f"{checkpoint} is a {kind}, and which model of lmms-eval runs that is not known; "
            "name it with --lmms-model (`lmms-eval models` lists them)"
        )
    return _MODELS[kind]


def _refuse_missing(program: Program, task: Task, folder: Path) -> None:
    if shutil.which(program.path) is None:
        raise MissingExtraError(
            f"lmms-eval: there is no program {program.path!r}; install it in an environment of its own "
            "(python -m venv E; E/bin/pip install lmms-eval==0.7.3) and give --lmms-eval E/bin/lmms-eval"
        )
    if task.facts == "llm_as_judge_eval" and not os.environ.get("OPENAI_API_KEY"):
        raise ConfigError(
            "lmms-eval lets a judge find the answers of MathVista; set OPENAI_API_KEY, or leave out --evaluator: "
            "the own evaluator needs no judge"
        )
    log = folder / "lmms-eval-tasks.log"
    _call([*_program(program), "--tasks", "list"], log)
    there = {line.strip(" -") for line in log.read_text(encoding="utf-8", errors="replace").splitlines()}
    if task.name not in there:
        raise ConfigError(
            f"{program.path} has no task {task.name}: {_last_words(log)}; install lmms-eval==0.7.3 and see {log}"
        )


def _call(line: Sequence[str], log: Path) -> None:
    """Run a program to its end, with all that it prints in a file; Ctrl-C reaches it too."""
    with log.open("wb") as output:
        subprocess.run(line, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False)


def _last_words(log: Path) -> str:
    """The last line that names an error, or else the last line; without colours."""
    text = _COLOURS.sub("", log.read_text(encoding="utf-8", errors="replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "it said nothing")[:300]
