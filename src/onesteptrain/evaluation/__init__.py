"""Ask a model the questions of a benchmark, check its answers, and say how sure the accuracy is."""

from onesteptrain.evaluation.answers import extract_answer, is_correct
from onesteptrain.evaluation.benchmark import Question, read_benchmark
from onesteptrain.evaluation.evaluating import (
    EvaluateOptions,
    Evaluation,
    Graded,
    evaluate,
    read_results,
    write_evaluation,
)
from onesteptrain.evaluation.paired import Difference, paired_difference, paired_marks
from onesteptrain.evaluation.suites import SuiteName, load_suite
from onesteptrain.evaluation.summary import Accuracy, accuracy_by

__all__ = [
    "Accuracy",
    "Difference",
    "EvaluateOptions",
    "Evaluation",
    "Graded",
    "Question",
    "SuiteName",
    "accuracy_by",
    "evaluate",
    "extract_answer",
    "is_correct",
    "load_suite",
    "paired_difference",
    "paired_marks",
    "read_benchmark",
    "read_results",
    "write_evaluation",
]
