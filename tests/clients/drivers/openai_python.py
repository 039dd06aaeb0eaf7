"""openai for Python."""

import openai
from protocol import Answer, Ask, Piece, drive


def answer(ask: Ask, piece: Piece) -> Answer:
    with openai.OpenAI(
        base_url=ask["base_url"], api_key=ask["api_key"], max_retries=ask["retries"]
    ) as client:
        match ask["do"]:
            case "models":
                return {"models": [model.id for model in client.models.list()]}
            case "completion":
                return completion(client, ask, piece)
        options = {**ask["options"], **({"tools": ask["tools"]} if ask["tools"] else {})}
        messages = [{"role": "user", "content": ask["text"]}]
        if ask["stream"]:
            return streamed(client, {"messages": messages, "model": ask["model"], **options}, piece)
        reply = client.chat.completions.create(messages=messages, model=ask["model"], **options)
        message, call = reply.choices[0].message, None
        if message.tool_calls:
            call = called(message.tool_calls[0].function)
        return {
            "text": message.content,
            "refusal": message.refusal,
            "call": call,
            "finish": reply.choices[0].finish_reason,
            "usage": reply.usage.completion_tokens,
        }


def streamed(client: openai.OpenAI, request: Answer, piece: Piece) -> Answer:
    told = {"text": "", "refusal": None, "call": None, "finish": None}
    for chunk in client.chat.completions.create(**request, stream=True):
        choice = chunk.choices[0]
        if choice.delta.content:
            told["text"] += choice.delta.content
            piece(choice.delta.content)
        for call in choice.delta.tool_calls or ():
            told["call"] = called(call.function)
        told["refusal"] = choice.delta.refusal or told["refusal"]
        told["finish"] = choice.finish_reason
    return told


def completion(client: openai.OpenAI, ask: Ask, piece: Piece) -> Answer:
    reply = client.completions.create(
        model=ask["model"], prompt=ask["text"], stream=ask["stream"], **ask["options"]
    )
    if not ask["stream"]:
        return {"text": reply.choices[0].text, "finish": reply.choices[0].finish_reason}
    texts, finish = [], None
    for chunk in reply:
        texts.append(chunk.choices[0].text)
        finish = chunk.choices[0].finish_reason
        if texts[-1]:
            piece(texts[-1])
    return {"text": "".join(texts), "finish": finish}


def called(function: object) -> Answer:
    return {"name": function.name, "arguments": function.arguments}


drive(answer)
