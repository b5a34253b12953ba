// Tokens per second of llama.cpp on a GGUF file: one sequence, and several decoded together in one batch.
//
//     npm install --ignore-scripts --prefix FOLDER node-llama-cpp      # prebuilt; FOLDER outside the repository
//     NODE_LLAMA_CPP=FOLDER node benchmarks/llama_cpp.mjs model.gguf --threads 2 --sequences 1,16
//
// Every sequence reads a prompt of its own, then draws greedily; timed is the drawing alone, after a few tokens that
// warm the batch up. A round runs each number of sequences once. llama.cpp's threads spin while they wait, so its
// figures mean something only on a machine that does nothing else. The last line of the output is JSON:
// {"threads": 2, "tokens_per_second": {"1": [..one per round..], "16": [...]}}.

import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";
import {parseArgs} from "node:util";

const {values: options, positionals} = parseArgs({
    allowPositionals: true,
    options: {
        threads: {type: "string", default: "2"},
        sequences: {type: "string", default: "1,16"},
        prompt: {type: "string", default: "64"}, // tokens
        tokens: {type: "string", default: "32"}, // drawn by each sequence
        rounds: {type: "string", default: "1"}
    }
});
const WARM_UP = 4;
const [path] = positionals;
const folder = process.env.NODE_LLAMA_CPP;
if (path === undefined || folder === undefined) {
    console.error("usage: NODE_LLAMA_CPP=FOLDER node benchmarks/llama_cpp.mjs MODEL.gguf [--threads N] …");
    process.exit(2);
}
const [threads, prompt, tokens, rounds] = ["threads", "prompt", "tokens", "rounds"].map((name) => Number(options[name]));
const counts = options.sequences.split(",").map(Number);

const entry = createRequire(`${folder}/package.json`).resolve("node-llama-cpp");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry).href);
const llama = await getLlama({build: "never", gpu: false, maxThreads: threads, logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: path});

async function decode(count) {
    const length = prompt + WARM_UP + tokens + 8;
    const context = await model.createContext({sequences: count, contextSize: length, batchSize: 512, threads});
    const draws = [];
    for (let i = 0; i < count; i++) {
        const ids = Array.from({length: prompt}, (_, t) => 1000 + ((i * 7919 + t * 104729) % 20000));
        const sequence = context.getSequence();
        draws.push(sequence.evaluate(ids, {temperature: 0, yieldEogToken: true}));
    }
    const draw = async (generator, number) => {
        for (let i = 0; i < number; i++) await generator.next();
    };
    await Promise.all(draws.map((generator) => draw(generator, WARM_UP)));
    const began = performance.now();
    await Promise.all(draws.map((generator) => draw(generator, tokens)));
    const spent = (performance.now() - began) / 1000;
    await Promise.all(draws.map((generator) => generator.return()));
    await context.dispose();
    return (count * tokens) / spent;
}

const figures = Object.fromEntries(counts.map((count) => [count, []]));
for (let round = 0; round < rounds; round++) {
    for (const count of counts) figures[count].push(await decode(count));
}
console.log(JSON.stringify({threads, tokens_per_second: figures}));
process.exit(0);
