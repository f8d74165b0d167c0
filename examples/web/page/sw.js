// Keeps the page's files, all of one version, and answers with them from then on. scripts/web.sh puts VERSION, POLICY, FILES (names and
// digests) and LATER (names of those that are kept once they are asked for) before this.

// Caches are the whole host's, on which another page may be of another version.
const OURS = `ampoule-${self.registration.scope}-`;
const KEPT = OURS + VERSION;

/**
 * With the page's policy: a Worker has that of its own file's answer, not of its page, and this host may have sent none. And with what only
 * an answer can say, no element of a page: who may frame it, and what is told to others.
 */
const HEADERS = {
  "Content-Security-Policy": `${POLICY}; frame-ancestors 'none'`,
  "Cross-Origin-Opener-Policy": "same-origin",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
};

async function keep(name) {
  // Asks whether what the browser has just fetched is still the newest, in place of fetching it again.
  const answer = await fetch(name, { cache: "no-cache", integrity: FILES[name] });
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  const headers = { ...HEADERS, "Content-Type": answer.headers.get("Content-Type") };
  const cache = await caches.open(KEPT);
  await cache.put(name, new Response(answer.body, { headers }));
}

self.addEventListener("install", (event) => {
  const forget = async (error) => {
    await caches.delete(KEPT);
    throw error;
  };
  const keepAll = async () => {
    // What an older version was asked for is kept of this one too.
    const before = (await caches.keys()).filter((name) => name.startsWith(OURS));
    const held = await Promise.all(before.map(async (name) => (await (await caches.open(name)).keys()).map(({ url }) => url)));
    const isHeld = (name) => held.flat().includes(self.registration.scope + name);
    await Promise.all(Object.keys(FILES).filter((name) => !LATER.includes(name) || isHeld(name)).map(keep));
  };
  event.waitUntil(keepAll().catch(forget));
});

self.addEventListener("activate", (event) => {
  const forget = async () => {
    const names = await caches.keys();
    await Promise.all(names.filter((name) => name.startsWith(OURS) && name !== KEPT).map((name) => caches.delete(name)));
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
  const answer = async () => {
    const cache = await caches.open(KEPT);
    // Where it cannot be kept, for lack of room or since its host has a newer one, it is only fetched.
    if (LATER.includes(name) && !(await cache.match(name))) await keep(name).catch(() => {});
    return (await cache.match(name)) ?? fetch(request);
  };
  event.respondWith(answer());
});
