"""Request fields that are known and have no place in a schema: refused by name, or accepted because they change no answer.

A field that is ignored although it changes the meaning of a request is the mistake that this file exists to avoid.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

REFUSED = "refused_field"
"""The type of the validation problem that names a field which is not served."""

Extra = Mapping[str, Any] | None
_Asks = Callable[[Any], bool]  # whether a value asks for something
Refusable = Mapping[str, _Asks]


def refused(name: str, hint: str = "") -> PydanticCustomError:
    """The problem to raise where a validator meets a field that is not served."""
    told = f"; {hint}" if hint else ""
    text = "{field} is not supported by this server{hint}"
    return PydanticCustomError(REFUSED, text, {"field": name, "hint": told})


def refuse_unserved(extra: Extra, table: Refusable) -> None:
    """Raises the problem of the first field that asks for something which is not served; null never asks."""
    for name, asks in table.items():
        value = (extra or {}).get(name)
        if value is not None and asks(value):
            raise refused(name, _HINTS.get(name, ""))


def refuse_foreign(extra: Extra, names: Iterable[str], path: str) -> None:
    """Raises where a field of another endpoint is given, which this one would have to ignore."""
    for name in names:
        if (extra or {}).get(name) not in (None, False):
            raise PydanticCustomError(
                REFUSED, "{field} is not a field of {path}", {"field": name, "path": path}
            )


def is_set(value: Any) -> bool:
    return bool(value)


def differs_from(*harmless: Any) -> _Asks:
    return lambda value: value not in harmless


def _is_unsupported_format(value: Any) -> bool:
    return not (isinstance(value, dict) and value.get("type") == "text")


# known, change what is answered, and are not served: refused unless they ask for nothing
GENERATION: Refusable = {
    **dict.fromkeys(
        (
            # OpenAI's
            "functions",
            "audio",
            "prediction",
            "web_search_options",
            "store",
            # vLLM's
            "guided_json",
            "guided_regex",
            "guided_choice",
            "guided_grammar",
            "structured_outputs",
            "continue_final_message",
            "prompt_embeds",
            "use_beam_search",
            "min_tokens",
            "chat_template",
            "chat_template_kwargs",
            "documents",
            "include_stop_str_in_output",
            "bad_words",
            "allowed_token_ids",
            "logits_processors",
            "return_token_ids",
            "return_tokens_as_token_ids",
            "truncate_prompt_tokens",
            "prompt_logprobs",
            "cache_salt",
            "priority",
            "thinking_token_budget",
            "kv_transfer_params",
            "vllm_xargs",
            "mm_processor_kwargs",
            # of llama.cpp, SGLang and others
            "grammar",
            "json_schema",
            "regex",
            "ebnf",
            "min_new_tokens",
            "n_predict",
            "mirostat",
            "typical_p",
            "dry_multiplier",
            "xtc_probability",
            "stop_regex",
            "reasoning",
        ),
        is_set,
    ),
    "response_format": _is_unsupported_format,
    "modalities": differs_from(["text"]),
    "function_call": differs_from("none", "auto"),
    "add_generation_prompt": lambda value: value is not True,
    "add_special_tokens": is_set,  # the chat template adds those of messages
    "skip_special_tokens": lambda value: value is not True,
    "spaces_between_special_tokens": lambda value: value is not True,
    "length_penalty": differs_from(1),
    "reasoning_effort": differs_from("none"),
    "thinking": differs_from({"type": "disabled"}),
    "include_reasoning": lambda value: value is not True,
    "service_tier": differs_from("auto", "default"),
    "verbosity": differs_from("medium"),
}

WITHOUT_TOOLS: Refusable = {
    **GENERATION,
    "tools": is_set,
    "tool_choice": differs_from("none", "auto"),
    "parallel_tool_calls": lambda _: False,  # without tools there are none to be parallel
}
"""Of the surfaces that serve no tools."""

_HINTS = {
    "previous_response_id": "it keeps no responses, so send the whole conversation as input",
    "conversation": "it keeps no conversations, so send all of it as input",
    "store": "it keeps nothing",
    "response_format": "chat completions and responses (as text.format) have it",
}

ACCEPTED = frozenset(
    {
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
    }
)
"""Known, and change nothing of what this server answers."""


def num_unknown(extra: Extra, *known: Iterable[str]) -> int:
    """How many of the fields no one knows."""
    return len(set(extra or ()).difference(ACCEPTED, *known))


def encodable(text: str) -> str:
    """JSON can spell half a surrogate pair, which is no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("is not valid Unicode text") from error
    return text


Text = Annotated[str, AfterValidator(encodable)]
EndUser = Annotated[Text, Field(max_length=128)]
Metadata = Annotated[
    dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]], Field(max_length=16)
]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    include_usage: bool = False
    include_obfuscation: bool = False
    continuous_usage_stats: Literal[False] | None = None  # vLLM's usage in every chunk


_OBFUSCATION_BLOCK = 32  # characters


def obfuscation(text: str) -> str:
    """Padding that brings a chunk's text to a multiple of a block, so that its size tells less about its token."""
    missing = -len(text) % _OBFUSCATION_BLOCK or _OBFUSCATION_BLOCK
    return secrets.token_hex(_OBFUSCATION_BLOCK)[:missing]
