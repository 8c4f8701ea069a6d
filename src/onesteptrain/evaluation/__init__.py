"""Ask a model the questions of a benchmark, check its answers, and say how sure the accuracy is.

No torch is loaded until a model is asked.
"""

from onesteptrain.evaluation.answers import extract_answer, is_correct
from onesteptrain.evaluation.benchmark import Question, read_benchmark
from onesteptrain.evaluation.evaluating import EvaluateOptions, evaluate
from onesteptrain.evaluation.paired import Difference, paired_difference, paired_marks
from onesteptrain.evaluation.results import Accuracy, Evaluation, Graded, read_results, summarise, write_evaluation
from onesteptrain.evaluation.suites import SuiteName, load_suite
from onesteptrain.evaluation.worth import training_verdict, worth_sentences

__all__ = [
    "Accuracy",
    "Difference",
    "EvaluateOptions",
    "Evaluation",
    "Graded",
    "Question",
    "SuiteName",
    "evaluate",
    "extract_answer",
    "is_correct",
    "load_suite",
    "paired_difference",
    "paired_marks",
    "read_benchmark",
    "read_results",
    "summarise",
    "training_verdict",
    "worth_sentences",
    "write_evaluation",
]
