"""langchain-openai: its chat model and its text model."""

from langchain_openai import ChatOpenAI, OpenAI
from protocol import Answer, Ask, Piece, drive


def answer(ask: Ask, piece: Piece) -> Answer:
    to = {
        "model": ask["model"],
        "base_url": ask["base_url"],
        "api_key": ask["api_key"],
        "max_retries": ask["retries"],
        **ask["options"],
    }
    if ask["do"] == "completion":
        return completion(OpenAI(**to), ask, piece)
    chat = ChatOpenAI(**to)
    if ask["tools"]:
        chat = chat.bind_tools(ask["tools"])
    if ask["stream"]:
        message = None
        for chunk in chat.stream(ask["text"]):
            message = chunk if message is None else message + chunk  # langchain's own accumulator
            if chunk.text:
                piece(chunk.text)
    else:
        message = chat.invoke(ask["text"])
    call = message.tool_calls[0] if message.tool_calls else None
    usage = message.usage_metadata
    return {
        "text": message.text,
        "refusal": message.additional_kwargs.get("refusal"),
        "call": call and {"name": call["name"], "arguments": call["args"]},
        "finish": message.response_metadata["finish_reason"],
        "usage": usage and usage["output_tokens"],
    }


def completion(text_model: OpenAI, ask: Ask, piece: Piece) -> Answer:
    if not ask["stream"]:
        (generation,) = text_model.generate([ask["text"]]).generations[0]
        return {"text": generation.text, "finish": generation.generation_info["finish_reason"]}
    texts = []
    for text in text_model.stream(ask["text"]):
        texts.append(text)
        if text:
            piece(text)
    return {"text": "".join(texts)}  # of text models it streams nothing but the text


drive(answer)
