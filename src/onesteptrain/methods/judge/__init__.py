"""LLM-as-a-Judge by rejection sampling, against any OpenAI-compatible endpoint that takes images."""

from onesteptrain.methods.judge.judging import Judge

__all__ = ["Judge"]
