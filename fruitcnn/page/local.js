// The page's side of the worker that runs the model in the browser.

export async function openModel(about) {
  const worker = new Worker("/page/worker.js", { type: "module" });
  const asked = new Map();
  let last = 0;
  const call = (message) => new Promise((resolve, reject) => {
    last += 1;
    asked.set(last, { resolve, reject });
    worker.postMessage({ id: last, ...message });
  });
  worker.onmessage = ({ data }) => {
    const { resolve, reject } = asked.get(data.id);
    asked.delete(data.id);
    if (data.error) reject(new Error(data.error)); else resolve(data.answer);
  };
  worker.onerror = (event) => {
    for (const { reject } of asked.values()) reject(new Error(event.message || "the worker could not start"));
    asked.clear();
  };
  await call({ about });
  return { classify: (file) => call({ file }) };
}
