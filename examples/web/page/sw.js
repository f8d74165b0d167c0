// Keeps the page's files, all of one version, and answers with them from then on. scripts/web.sh puts VERSION, POLICY and FILES (names and
// digests) before this.

const KEPT = `ampoule-${VERSION}`;

/** With the page's policy: a Worker has that of its own file's answer, not of its page, and this host may have sent none. */
async function keep(name) {
  // Asks whether what the browser has just fetched is still the newest, in place of fetching it again.
  const answer = await fetch(name, { cache: "no-cache", integrity: FILES[name] });
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  const headers = { "Content-Type": answer.headers.get("Content-Type"), "Content-Security-Policy": POLICY };
  const cache = await caches.open(KEPT);
  await cache.put(name, new Response(answer.body, { headers }));
}

self.addEventListener("install", (event) => {
  event.waitUntil(Promise.all(Object.keys(FILES).map(keep)));
});

self.addEventListener("activate", (event) => {
  const forget = async () => {
    const names = await caches.keys();
    await Promise.all(names.filter((name) => name.startsWith("ampoule-") && name !== KEPT).map((name) => caches.delete(name)));
    await self.clients.claim();
  };
  event.waitUntil(forget());
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const { scope } = self.registration;
  if (request.method !== "GET" || !request.url.startsWith(scope)) return;
  const name = request.url.slice(scope.length).replace(/[?#].*/, "") || "index.html";
  if (!Object.hasOwn(FILES, name)) return;
  const answer = async () => (await (await caches.open(KEPT)).match(name)) ?? fetch(request);
  event.respondWith(answer());
});
