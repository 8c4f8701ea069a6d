"""Final answers: find the one that a text states, and tell whether two mean the same."""

from onesteptrain.evaluation.answers.choices import choice
from onesteptrain.evaluation.answers.equivalence import same_answer
from onesteptrain.evaluation.answers.extraction import extract_answer, is_correct

__all__ = ["choice", "extract_answer", "is_correct", "same_answer"]
