"""POST /tokenize and /detokenize, GET /tokenizer_info, in vLLM's shapes: for clients that count or make token ids."""

from collections.abc import Sequence
from typing import Annotated, Self

from anyio import to_thread
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.api.errors import Body, bad_request
from server.api.fields import Refusable, Text, is_set, num_unknown, refuse_unserved
from server.api.routing import Router
from server.api.schema import MAX_MESSAGES, ChatMessage, TokenId
from server.prompts import check_characters, check_model, conversation
from server.service import Service

router = Router()

_REFUSED: Refusable = dict.fromkeys(
    ("tools", "chat_template", "chat_template_kwargs", "continue_final_message", "mm_processor_kwargs"),
    is_set,
)


class _ForModel(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    model: str | None = None

    @model_validator(mode="after")
    def _refuse_what_is_not_served(self) -> Self:
        refuse_unserved(self.model_extra, _REFUSED)
        return self

    def check(self, service: Service) -> None:
        """Raises ApiError."""
        if self.model is not None:
            check_model(service, self.model)
        service.metrics.unknown_fields.inc(num_unknown(self.model_extra, _REFUSED))


class TokenizeRequest(_ForModel):
    """A text, or a conversation for the chat template."""

    prompt: Text | None = None
    messages: (
        Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None
    ) = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        if self.messages is not None and self.add_special_tokens:
            raise ValueError("add_special_tokens goes with prompt; the chat template adds those of messages")
        return self


class DetokenizeRequest(_ForModel):
    tokens: list[TokenId]


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> Body:
    """Exactly the ids that a completion of this prompt, or a chat of these messages, is given."""
    service: Service = request.app.state.service
    body.check(service)
    tokens = await _ids(service, body)
    return {
        "count": len(tokens),
        "max_model_len": service.engine.info.max_context,
        "tokens": tokens,
        "token_strs": service.tokenizer.pieces(tokens) if body.return_token_strs else None,
    }


async def _ids(service: Service, body: TokenizeRequest) -> list[int]:
    tokenizer = service.tokenizer
    if body.messages is None:
        text, special = body.prompt or "", body.add_special_tokens is not False
        check_characters(service, len(text), "prompt")
        return await to_thread.run_sync(lambda: tokenizer.encode(text, add_special_tokens=special))
    prompt = await conversation(
        service, body.messages, "messages", add_generation_prompt=body.add_generation_prompt
    )
    return prompt.ids


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> Body:
    service: Service = request.app.state.service
    body.check(service)
    check_characters(service, len(body.tokens), "tokens")
    check_ids(service, body.tokens, "tokens")
    return {"prompt": await to_thread.run_sync(service.tokenizer.decode, body.tokens)}


@router.get("/tokenizer_info")
async def info(request: Request) -> Body:
    service: Service = request.app.state.service
    known = service.tokenizer.info
    return {
        "tokenizer_class": known.kind,
        "vocab_size": known.num_ids,
        "model_max_length": service.engine.info.max_context,
        "bos_token": known.bos_token,
        "eos_token": known.eos_token,
        "pad_token": known.pad_token,
        "unk_token": known.unk_token,
        "chat_template": known.chat_template,
    }


def check_ids(service: Service, ids: Sequence[int], param: str) -> None:
    """Raises ApiError for a token id that the tokenizer doesn't have."""
    num_ids = service.tokenizer.info.num_ids
    if any(token_id >= num_ids for token_id in ids):
        raise bad_request(f"a token id is outside the vocabulary (0 to {num_ids - 1})", param)
