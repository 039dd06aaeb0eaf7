"""How a block is told to a client, in one of three styles.

`openai`: a blocked prompt is an error, a blocked reply a `content_filter` with a refusal. `refusal_200`: a blocked prompt is
told as a blocked reply is, for chat programs that show errors badly. `azure`: as `openai`, with what Azure adds to both.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from guard.types import Phase
from server.api.errors import ApiError, Body
from server.api.running import Result
from server.keys.types import BlockStyle

_CATEGORY = "policy"  # the only one: which monitor it was is no client's business


def prompt_block(
    code: str, message: str | None, param: str, extra: Mapping[str, Any], style: BlockStyle
) -> ApiError:
    """A request that was blocked before the model answered."""
    text = message or "This request was blocked by policy."
    if code == "misalignment_policy_violation":
        error = ApiError(403, text, code=code, extra=dict(extra))
        error.body["error"]["misalignment"] = {
            "error_type": "other",
            "detailed_explanation": text,
            "review_target": None,
            "steer": {"message": text},
        }
        return error
    error = ApiError(400, text, param=param, code="content_filter", extra=dict(extra))
    if style is BlockStyle.AZURE:
        error.body["error"] |= {
            "status": error.status,
            "innererror": {
                "code": "ResponsibleAIPolicyViolation",
                "content_filter_result": _filter_results(filtered=True),
            },
        }
    return error


def prompt_filter_results(results: Sequence[Result], prompts: Sequence[int]) -> Body:
    """Azure's, of a request's prompts. prompts: which one each result answers."""
    filtered = dict.fromkeys(prompts, False)
    for prompt, result in zip(prompts, results, strict=True):
        filtered[prompt] |= _is_filtered(result, Phase.PROMPT)
    found = [
        {"prompt_index": index, "content_filter_results": _filter_results(filtered=is_filtered)}
        for index, is_filtered in enumerate(filtered.values())
    ]
    return {"prompt_filter_results": found}


def reply_filter_results(result: Result) -> Body:
    """Azure's, of one choice."""
    return {"content_filter_results": _filter_results(filtered=_is_filtered(result, Phase.RESPONSE))}


def _is_filtered(result: Result, phase: Phase) -> bool:
    return result.closed is not None and result.closed.stop is not None and result.closed.phase is phase


def _filter_results(*, filtered: bool) -> Body:
    return {_CATEGORY: {"filtered": filtered, "detected": filtered}}
