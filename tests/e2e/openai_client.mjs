// What OpenAI's client for JavaScript gets from the server's models, as one line of JSON.
// The SDK's folder, the API's URL and a token are the arguments.
import { createRequire } from "node:module";

const [folder, baseURL, apiKey] = process.argv.slice(2);
const { OpenAI } = createRequire(`${folder}/`)("openai");
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const ask = (model, content, more) =>
  client.chat.completions.create({ model, messages: [{ role: "user", content }], ...more });

const words = async (stream) => {
  const found = [];
  for await (const chunk of stream) found.push(chunk.choices[0]?.delta.content ?? "");
  return found.join("");
};

const error = async (asking) => {
  try {
    await asking;
  } catch (caught) {
    return { class: caught.constructor.name, status: caught.status, code: caught.code };
  }
};

const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object" } } }];
const said = {};
said.models = (await client.models.list()).data.map((model) => model.id).sort();
said.whole = (await ask("llama", "Count")).choices[0].message.content;
said.stream = await words(await ask("llama", "Count", { stream: true }));
said.tool = (await ask("llama", "Weather?", { tools })).choices[0].message.tool_calls[0].function.name;
said.embedding = (await client.embeddings.create({ model: "llama", input: "a", encoding_format: "float" })).data[0]
  .embedding;
said.tgi = (await ask("falcon", "Count", { stop: [" END"] })).choices[0].message.content;
said.tgiStream = await words(await ask("falcon", "Count", { stream: true, stop: [" END"] }));
said.unknown = await error(ask("none", "Count"));
said.theirs = await error(ask("llama", "fail 429"));
said.late = await error((async () => words(await ask("llama", "die late", { stream: true })))());
said.stranger = await error(new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list());
console.log(JSON.stringify(said));
