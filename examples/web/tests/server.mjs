// A server of files that sends no header but their type: what the page promises it has to bring about by itself.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";

const TYPES = {
  html: "text/html; charset=utf-8", js: "text/javascript; charset=utf-8", css: "text/css; charset=utf-8",
  md: "text/markdown; charset=utf-8", wasm: "application/wasm", webmanifest: "application/manifest+json", svg: "image/svg+xml",
  png: "image/png", safetensors: "application/octet-stream",
};

/** Serves a folder, with `changed` (by name, null for none) in place of its files, until `stop`; `asked` has what it was asked for. */
export async function serve(folder, changed) {
  const asked = [];
  const server = createServer(async ({ url }, response) => {
    const name = new URL(url, "http://localhost").pathname.slice(1) || "index.html";
    asked.push(name);
    try {
      const bytes = name in changed ? changed[name] : await readFile(`${folder}/${name}`);
      if (bytes === null) throw new Error("absent");
      response.writeHead(200, { "Content-Type": TYPES[name.split(".").pop()] ?? "text/plain; charset=utf-8" }).end(bytes);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    asked,
    origin: `http://127.0.0.1:${server.address().port}`,
    stop: () => new Promise((resolve) => {
      server.close(resolve);
      server.closeAllConnections();
    }),
  };
}

/** Stands for the rest of the world: a proxy that answers nothing and remembers who was called. */
export async function outside() {
  const called = [];
  const server = createServer(({ url }, response) => {
    called.push(url);
    response.writeHead(502).end();
  });
  server.on("connect", ({ url }, socket) => {
    called.push(url);
    socket.destroy();
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { called, origin: `http://127.0.0.1:${server.address().port}`, stop: () => server.close() };
}
