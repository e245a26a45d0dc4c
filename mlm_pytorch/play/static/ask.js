// Questions to the server, of which the newest of each kind counts.

// One question of each kind is open at a time: a newer one takes the older one's place, whose answer is dropped.
const open = new Map();

export function replace(kind) {
  open.get(kind)?.abort();
  const controller = new AbortController();
  open.set(kind, controller);
  return controller.signal;
}

export async function ask(path, question, signal) {
  let response;
  try {
    response = await fetch(path, {
      method: question ? "POST" : "GET",
      headers: question ? { "content-type": "application/json" } : {},
      body: question ? JSON.stringify(question) : null,
      signal,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Error("The server does not answer; is mlm play still running?");
  }
  if (response.ok) return response;
  let reason = `The server answers with status ${response.status}.`;
  if (response.headers.get("content-type")?.startsWith("application/json")) reason = (await response.json()).error;
  throw new Error(reason);
}

export async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const line of parts) yield JSON.parse(line);
  }
}
