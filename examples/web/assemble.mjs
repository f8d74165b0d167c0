// Puts what belongs to the page's files together: node assemble.mjs FOLDER, which holds all files but these two.
//   sizes.js   bytes of what is loaded with progress
//   sw.js      page/sw.js with the names and digests of all files, which of them not every visit needs, the version of all, and the page's policy
import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";

const [folder] = process.argv.slice(2);
const read = (name) => readFileSync(`${folder}/${name}`);
const digest = (bytes) => `sha256-${createHash("sha256").update(bytes).digest("base64")}`;

const loaded = readdirSync(folder).filter((name) => /\.(wasm|safetensors|md)$/.test(name));
const sizes = Object.fromEntries(loaded.map((name) => [name, read(name).length]));
writeFileSync(`${folder}/sizes.js`, `export default ${JSON.stringify(sizes)};\n`);

const files = Object.fromEntries(readdirSync(folder).sort().filter((name) => name !== "sw.js").map((name) => [name, digest(read(name))]));
const [, policy] = read("index.html").toString().match(/http-equiv="Content-Security-Policy" content="([^"]+)"/);
const own = readFileSync(new URL("page/sw.js", import.meta.url));
const version = createHash("sha256").update(JSON.stringify(files)).update(own).digest("hex").slice(0, 16);
const later = Object.keys(files).filter((name) => name.startsWith("ampoule_webgpu"));
const known = Object.entries({ VERSION: version, POLICY: policy, FILES: files, LATER: later });
writeFileSync(`${folder}/sw.js`, known.map(([name, value]) => `const ${name} = ${JSON.stringify(value)};\n`).join("") + own);
