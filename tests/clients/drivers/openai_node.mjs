// openai for Node, driven as `protocol.py` says.
import readline from "node:readline";
import OpenAI from "openai";

const tell = (told) => process.stdout.write(JSON.stringify(told) + "\n");
const piece = (text) => text && tell({ piece: text });

async function answer(ask) {
  const client = new OpenAI({ baseURL: ask.base_url, apiKey: ask.api_key, maxRetries: ask.retries });
  if (ask.do === "models") {
    const models = [];
    for await (const model of client.models.list()) models.push(model.id);
    return { models };
  }
  const request = { model: ask.model, ...ask.options };
  if (ask.do === "completion") return completion(client, { ...request, prompt: ask.text }, ask.stream);
  request.messages = [{ role: "user", content: ask.text }];
  if (ask.tools) request.tools = ask.tools;
  const reply = ask.stream ? await accumulated(client, request) : await client.chat.completions.create(request);
  const { message, finish_reason: finish } = reply.choices[0];
  return {
    text: message.content,
    refusal: message.refusal ?? null,
    call: message.tool_calls?.[0].function ?? null,
    finish,
    usage: reply.usage?.completion_tokens,
  };
}

async function accumulated(client, request) {
  const stream = client.chat.completions.stream(request);
  stream.on("content", piece);
  return stream.finalChatCompletion();
}

async function completion(client, request, stream) {
  const reply = await client.completions.create({ ...request, stream });
  if (!stream) return { text: reply.choices[0].text, finish: reply.choices[0].finish_reason };
  const told = { text: "", finish: null };
  for await (const chunk of reply) {
    told.text += chunk.choices[0].text;
    told.finish = chunk.choices[0].finish_reason;
    piece(chunk.choices[0].text);
  }
  return told;
}

tell({ ready: true });
for await (const line of readline.createInterface({ input: process.stdin })) {
  try {
    tell(await answer(JSON.parse(line)));
  } catch (error) {
    const { status = null, code = null, message } = error;
    tell({ error: { kinds: [error.constructor.name], status, code, message } });
  }
}
