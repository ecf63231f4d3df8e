// The same in onnxruntime-web, the WebAssembly build for browsers, within Node.js: node in_web.mjs FOLDER RESULTS
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as ort from "onnxruntime-web";

const [folder, results] = process.argv.slice(2);
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "fatal";
const described = JSON.parse(readFileSync(join(folder, "feeds.json"), "utf8"));
const feeds = Object.fromEntries(
  Object.entries(described).map(([name, { dims, data }]) => [
    name,
    new ort.Tensor("int64", BigInt64Array.from(data.map(BigInt)), dims),
  ]),
);
for (const file of readdirSync(folder).filter((name) => name.endsWith(".onnx"))) {
  const stem = join(results, file.slice(0, -".onnx".length));
  try {
    const session = await ort.InferenceSession.create(readFileSync(join(folder, file)));
    const { logits } = await session.run(feeds);
    writeFileSync(`${stem}.bin`, Buffer.from(logits.data.buffer, logits.data.byteOffset, logits.data.byteLength));
  } catch (error) {
    writeFileSync(`${stem}.error`, String(error.message ?? error));
  }
}
