"""From what a client sent to token ids: within limits, and through the model's chat template."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from anyio import to_thread

from server.api.errors import bad_request, context_too_long, model_not_found
from server.api.schema import ChatMessage
from server.api.tools_schema import Tool
from server.service import Service
from server.tokenizer import Message, PromptError, TemplateMessage, end_of_first_user_message

_MOST_CHARACTERS_PER_TOKEN = 16  # no tokenizer packs more of real text into its context


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as text, and the token ids that the chat template makes of them."""

    messages: list[Message]
    ids: list[int]
    reference: int | None = None  # the first user message's last token, where some monitor measures from it


async def conversation(
    service: Service,
    messages: Sequence[ChatMessage],
    param: str,
    tools: Sequence[Tool] = (),
    *,
    add_generation_prompt: bool = True,
) -> Conversation:
    """Messages, and tools on offer, as the model is shown them. Raises ApiError, which names `param`."""
    shown = [tool.shown for tool in tools]
    if shown or any(message.uses_tools for message in messages):
        _check_tools(service, "tools" if shown else param)
    num_characters = sum(len(message.text) for message in messages) + sum(map(_length, shown))
    check_characters(service, num_characters, param)
    templates = [message.shown for message in messages]
    ids = await templated(service, templates, param, shown, add_generation_prompt=add_generation_prompt)
    return Conversation(
        [{"role": m.shown_role, "content": m.text} for m in messages],
        ids,
        await reference(service, templates, ids, shown),
    )


async def reference(
    service: Service,
    messages: Sequence[TemplateMessage],
    ids: Sequence[int],
    tools: Sequence[Mapping[str, Any]] = (),
) -> int | None:
    """Which token monitors of drift measure from. None where no monitor in force does, which saves rendering twice."""
    if not service.policies.in_force.scoring.needs_reference:
        return None
    return await to_thread.run_sync(end_of_first_user_message, service.tokenizer, messages, ids, tools)


async def templated(
    service: Service,
    messages: Sequence[TemplateMessage],
    param: str,
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Raises ApiError."""
    chat = partial(service.tokenizer.chat, messages, tools=tools, add_generation_prompt=add_generation_prompt)
    try:
        return await to_thread.run_sync(chat)
    except PromptError as error:
        raise bad_request(str(error), param) from error


def check_model(service: Service, model: str) -> None:
    """Raises ApiError."""
    if model not in service.served_models:
        known = ", ".join(service.served_models)
        raise model_not_found(f"This model does not exist here; served: {known}")


def check_characters(service: Service, num_characters: int, param: str) -> None:
    """Refuse what can't fit before it costs the time to tokenise it. (A token id counts as a character.) Raises ApiError."""
    most = min(service.engine.info.max_context, service.max_prompt_tokens or service.engine.info.max_context)
    limit = _MOST_CHARACTERS_PER_TOKEN * most
    if num_characters > limit:
        service.metrics.shed.labels("prompt_too_long").inc()
        raise context_too_long(
            f"The request has {num_characters} characters; at most {limit} can fit.", param
        )


def _check_tools(service: Service, param: str) -> None:
    if not service.tokenizer.info.calls_tools:
        raise bad_request(
            "tools are not supported with this model: its chat template does not show them, or has it call them in "
            "a form that this server can't read (it reads JSON between <tool_call> and </tool_call>)",
            param,
        )


def _length(tool: Mapping[str, Any]) -> int:
    return len(json.dumps(tool))
