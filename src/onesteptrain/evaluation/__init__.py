"""Ask a model the questions of a benchmark, check its answers, and say how sure the accuracy is."""

from onesteptrain.evaluation.answers import extract_answer, is_correct
from onesteptrain.evaluation.benchmark import Question, read_benchmark
from onesteptrain.evaluation.evaluating import EvaluateOptions, Evaluation, Graded, evaluate, write_evaluation
from onesteptrain.evaluation.summary import Accuracy, accuracy_by

__all__ = [
    "Accuracy",
    "EvaluateOptions",
    "Evaluation",
    "Graded",
    "Question",
    "accuracy_by",
    "evaluate",
    "extract_answer",
    "is_correct",
    "read_benchmark",
    "write_evaluation",
]
