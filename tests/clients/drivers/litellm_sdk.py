"""litellm's SDK, and its own code for generic guardrails."""

import asyncio
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = (
    "True"  # or it looks prices up on the internet when it is imported
)

import litellm
from litellm.proxy.guardrails.guardrail_hooks.generic_guardrail_api import GenericGuardrailAPI
from protocol import Answer, Ask, Piece, drive

litellm.suppress_debug_info = True


def answer(ask: Ask, piece: Piece) -> Answer:
    if ask["do"] == "guardrail":
        return asyncio.run(guardrail(ask))
    to = {"api_base": ask["base_url"], "api_key": ask["api_key"]}
    if ask["do"] == "models":
        found = litellm.get_valid_models(check_provider_endpoint=True, custom_llm_provider="openai", **to)
        return {"models": [name.removeprefix("openai/") for name in found]}
    to |= {"max_retries": ask["retries"], "stream": ask["stream"], **ask["options"]}
    if ask["do"] == "completion":
        reply = litellm.text_completion(
            model=f"text-completion-openai/{ask['model']}", prompt=ask["text"], **to
        )
        if ask["stream"]:
            return streamed_text(reply, piece)
        return {"text": reply.choices[0].text, "finish": reply.choices[0].finish_reason}
    reply = litellm.completion(
        model=f"openai/{ask['model']}",
        messages=[{"role": "user", "content": ask["text"]}],
        tools=ask["tools"] or None,
        **to,
    )
    if ask["stream"]:
        reply = accumulated(reply, piece)
    choice = reply.choices[0]
    call = choice.message.tool_calls[0].function if choice.message.tool_calls else None
    return {
        "text": choice.message.content,
        "refusal": choice.message.get("refusal"),
        "call": call and {"name": call.name, "arguments": call.arguments},
        "finish": choice.finish_reason,
        "usage": reply.usage.completion_tokens,
    }


def accumulated(reply: object, piece: Piece) -> object:
    """The whole that litellm's own accumulator makes of the pieces."""
    chunks = []
    for chunk in reply:
        chunks.append(chunk)
        if chunk.choices[0].delta.content:
            piece(chunk.choices[0].delta.content)
    return litellm.stream_chunk_builder(chunks)


def streamed_text(reply: object, piece: Piece) -> Answer:
    texts, finish = [], None
    for chunk in reply:
        texts.append(chunk.choices[0].text or "")
        finish = chunk.choices[0].finish_reason or finish
        if texts[-1]:
            piece(texts[-1])
    return {"text": "".join(texts), "finish": finish}


async def guardrail(ask: Ask) -> Answer:
    own = GenericGuardrailAPI(
        api_base=ask["base_url"],
        api_key=ask["api_key"],
        guardrail_name="interlock",
        event_hook="pre_call",
        default_on=True,
        **ask["options"],
    )
    return dict(await own.apply_guardrail(ask["inputs"], request_data={}, input_type=ask["input_type"]))


drive(answer)
