"""The proxy: a small vision-language model that stands in for the target while samples are scored."""

from onesteptrain.proxy.acceleration.prefetch import prefetching, readers
from onesteptrain.proxy.acceleration.preparing import prepare
from onesteptrain.proxy.encoding import Batch, Encoded, Encoder
from onesteptrain.proxy.loading import LoadOptions, load_proxy
from onesteptrain.proxy.memory import in_batches
from onesteptrain.proxy.model import AnswerLogits, Proxy, TokenLosses
from onesteptrain.proxy.scope import Scope, ScopeOptions

__all__ = [
    "AnswerLogits",
    "Batch",
    "Encoded",
    "Encoder",
    "LoadOptions",
    "Proxy",
    "Scope",
    "ScopeOptions",
    "TokenLosses",
    "in_batches",
    "load_proxy",
    "prefetching",
    "prepare",
    "readers",
]
