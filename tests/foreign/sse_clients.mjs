// The clients of the SSE matrix: node sse_clients.mjs FOLDER BASE_URL < rows.json > outcomes.json
//
// FOLDER holds node_modules. A row is {name, api}; its name is the model that is asked for. What a client made of the
// answer is one object: text, reasoning, tools, finish, usage, and the error where it threw or reported one. `comment`
// says whether our comment block was in the bytes that this client got.
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, baseURL] = process.argv.slice(2);
const { resolve } = createRequire(join(folder, "package.json"));
const load = (name) => import(pathToFileURL(resolve(name)));
const [{ streamText }, { createOpenAI }, { createOpenAICompatible }, { default: OpenAI }] = await Promise.all(
  ["ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "openai"].map(load),
);
globalThis.AI_SDK_LOG_WARNINGS = false;

const PATIENCE = 8000; // ms for a whole stream, not only to its head: hence the signal
let heard;
const watching = async (url, options) => {
  const answer = await fetch(url, options);
  if (!answer.body) return answer;
  const seen = new TransformStream({
    transform(piece, out) {
      heard += Buffer.from(piece).toString("latin1");
      out.enqueue(piece);
    },
  });
  return new Response(answer.body.pipeThrough(seen), answer);
};

const said = (error) => String(error?.message ?? error?.error?.message ?? JSON.stringify(error)) || "error";
const messages = [{ role: "user", content: "?" }];
const node = new OpenAI({ baseURL, apiKey: "k", maxRetries: 0, timeout: PATIENCE, fetch: watching });
const sdk = createOpenAI({ baseURL, apiKey: "k", fetch: watching });
const compatible = createOpenAICompatible({ name: "gateway", baseURL, apiKey: "k", fetch: watching, includeUsage: true });

const bounded = () => ({ signal: AbortSignal.timeout(PATIENCE) });
const usageOf = (usage) => usage ? [usage.prompt_tokens ?? usage.input_tokens, usage.completion_tokens ?? usage.output_tokens] : null;

async function nodeChat(model, out) {
  const stream = await node.chat.completions.create({ model, messages, stream: true, stream_options: { include_usage: true } }, bounded());
  for await (const chunk of stream) {
    out.events += 1;
    if (chunk.usage) out.usage = usageOf(chunk.usage);
    for (const { delta, finish_reason } of chunk.choices ?? []) {
      out.text += delta?.content ?? "";
      out.reasoning += delta?.reasoning_content ?? delta?.reasoning ?? "";
      for (const call of delta?.tool_calls ?? []) {
        out.tools[call.index] = (out.tools[call.index] ?? "") + (call.function?.name ?? "") + (call.function?.arguments ?? "");
      }
      if (finish_reason) out.finish = finish_reason;
    }
  }
}

async function nodeHelper(model, out) {
  const stream = node.chat.completions.stream({ model, messages, stream_options: { include_usage: true } }, bounded());
  stream.on("content", (piece) => (out.text += piece));
  const { choices, usage } = await stream.finalChatCompletion();
  out.finish = choices[0].finish_reason;
  out.tools = (choices[0].message.tool_calls ?? []).map((call) => call.function.name + call.function.arguments);
  out.usage = usageOf(usage);
}

async function nodeResponses(model, out) {
  for await (const event of await node.responses.create({ model, input: "?", stream: true }, bounded())) {
    out.events += 1;
    if (event.type === "response.output_text.delta") out.text += event.delta;
    if (event.type === "response.function_call_arguments.delta") out.tools[0] = (out.tools[0] ?? "") + event.delta;
    if (event.type === "error") out.error = said(event);
    if (/^response\.(completed|incomplete|failed)$/.test(event.type)) {
      out.finish = event.type;
      out.usage = usageOf(event.response.usage);
    }
  }
}

const aiSdk = (model) => async (name, out) => {
  const result = streamText({
    model: model(name), prompt: "?", maxRetries: 0, abortSignal: bounded().signal, onError() {},
  });
  for await (const part of result.fullStream) {
    out.events += 1;
    if (part.type === "text-delta") out.text += part.text;
    if (part.type === "reasoning-delta") out.reasoning += part.text;
    if (part.type === "tool-call") out.tools.push(part.toolName + JSON.stringify(part.input));
    if (part.type === "abort") out.error = "aborted";
    if (part.type === "error") out.error = said(part.error);
    if (part.type === "finish") {
      out.finish = part.finishReason;
      if (part.totalUsage?.inputTokens !== undefined) out.usage = [part.totalUsage.inputTokens, part.totalUsage.outputTokens];
    }
  }
};

const clients = {
  chat: {
    "openai-node": nodeChat,
    "openai-node .stream()": nodeHelper,
    "ai + openai": aiSdk((name) => sdk.chat(name)),
    "ai + openai-compatible": aiSdk((name) => compatible(name)),
  },
  responses: { "openai-node": nodeResponses, "ai + openai": aiSdk((name) => sdk.responses(name)) },
};

let input = "";
for await (const piece of process.stdin) input += piece;
const outcomes = [];
for (const { name, api } of JSON.parse(input)) {
  for (const [client, ask] of Object.entries(clients[api])) {
    heard = "";
    const began = Date.now();
    const out = { text: "", reasoning: "", tools: [], finish: null, usage: null, error: null, events: 0 };
    try {
      await ask(name, out);
    } catch (error) {
      out.error = said(error);
      out.status = error?.status ?? error?.statusCode ?? null;
    }
    if (process.env.TIMES) console.error(Date.now() - began, name, client);
    outcomes.push({ row: name, client, comment: heard.includes(": headgate {"), ...out });
  }
}
process.stdout.write(JSON.stringify(outcomes), () => process.exit(0)); // connections that were cut need not end by themselves
