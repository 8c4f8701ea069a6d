"""The proxy: a small vision-language model that stands in for the target while samples are scored."""

from onesteptrain.proxy.acceleration.prefetch import encoded_ahead, readers
from onesteptrain.proxy.encoding import Batch, Encoded, Encoder
from onesteptrain.proxy.loading import LoadOptions, load_proxy
from onesteptrain.proxy.model import AnswerLogits, Proxy, TokenLosses, in_batches
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
    "encoded_ahead",
    "in_batches",
    "load_proxy",
    "readers",
]
