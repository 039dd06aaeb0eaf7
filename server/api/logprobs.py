"""Log-probabilities of tokens in the shape of chat completions, which /v1/responses shares."""

from collections.abc import Sequence

from server.api.errors import Body
from server.engines.base import Token, TokenLogprob

_LEAST = -9999.0  # JSON knows no -inf; OpenAI's clients know this number


def logprob_entries(tokens: Sequence[Token]) -> list[Body]:
    """One entry per token that has a log-probability."""
    return [
        {**_entry(token.logprob), "top_logprobs": [_entry(top) for top in token.top_logprobs]}
        for token in tokens
        if token.logprob is not None
    ]


def _entry(item: TokenLogprob) -> Body:
    return {"token": item.text, "logprob": max(item.logprob, _LEAST), "bytes": list(item.token_bytes)}
