// Runs a converted model: node run.mjs MODEL.onnx TOKEN...
// Prints the token that the model holds likeliest behind each of those given.
// ONNX Runtime's JavaScript API registers no custom-op library: the function bodies that the file carries run.
import * as ort from "onnxruntime-node"; // in a browser: onnxruntime-web

const [model, ...words] = process.argv.slice(2);
const tokens = BigInt64Array.from(words, BigInt);
const session = await ort.InferenceSession.create(model);
const { logits } = await session.run({ input_ids: new ort.Tensor("int64", tokens, [1, tokens.length]) });

const vocabulary = logits.dims.at(-1);
for (let i = 0; i < tokens.length; i++) {
  const row = logits.data.subarray(i * vocabulary, (i + 1) * vocabulary);
  console.log(row.indexOf(Math.max(...row)));
}
