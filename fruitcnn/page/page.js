// The page: pictures come in by drop, paste, file dialog or camera; answers come from /classify, or from a worker that
// runs the model here. One picture a request, a few at a time, so that each answer is seen as soon as it is there.

const AT_A_TIME = 4;
const TRIES = 4;
const byId = (id) => document.getElementById(id);
const status = byId("status");
const page = { about: null, local: null, waiting: [], busy: 0, done: 0, asked: 0 };

async function start() {
  byId("choose").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", (event) => { take([...event.target.files]); event.target.value = ""; });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length) { event.preventDefault(); take(files); }
  });
  for (const name of ["dragenter", "dragover"]) document.addEventListener(name, (event) => over(event, true));
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(event, false); });
  document.addEventListener("drop", (event) => { over(event, false); take([...event.dataTransfer.files]); });
  byId("camera").addEventListener("click", openCamera);
  byId("close").addEventListener("click", () => byId("camera-dialog").close());
  byId("camera-dialog").addEventListener("close", stopCamera);
  byId("shoot").addEventListener("click", shoot);
  byId("local").addEventListener("click", switchPlace);
  await describe();
}

async function describe() {
  try {
    page.about = await (await fetch("/model")).json();
  } catch {
    say("The server does not answer. Reload the page in a while.");
    return;
  }
  byId("about").textContent = `One of ${page.about.labels.length} kinds, or none of them.`;
  if (!page.about.browser || !page.about.has_browser_runtime) {
    byId("local").disabled = true;
    byId("local-note").textContent = "Not available on this server (built without “make web”): pictures are sent to it.";
  }
}

function over(event, isOver) {
  event.preventDefault();
  byId("drop").classList.toggle("over", isOver);
}

function say(text) { status.textContent = text; }

// Pictures in, answers out

function take(files) {
  if (!files.length) { say("That was no file: drop a picture, not text or a link."); return; }
  page.asked += files.length;
  for (const file of files) page.waiting.push({ file, card: card(file) });
  progress();
  while (page.busy < AT_A_TIME && page.waiting.length) next();
}

async function next() {
  page.busy += 1;
  while (page.waiting.length) {
    const { file, card } = page.waiting.shift();
    await thumbnail(file, card);
    let answer;
    try {
      answer = page.local ? await page.local.classify(file) : await ask(file);
    } catch (error) {
      answer = { status: "failed", detail: error.message };
    }
    show(answer, file, card);
    page.done += 1;
    progress(page.asked === 1 || page.done === page.asked ? card.querySelector("h3").textContent : "");
  }
  page.busy -= 1;
  if (!page.busy && !page.waiting.length) page.asked = page.done = 0;
}

function progress(last = "") {
  if (page.done < page.asked) say(`Looking at ${page.asked === 1 ? "the picture" : `${page.asked} pictures, ${page.done} done`}…`);
  else say(page.asked === 1 ? `Answer: ${last}` : `${page.done} pictures done.`);
}

async function ask(file) {
  if (!file.size) return { status: "rejected", cause: "empty", detail: "0 bytes" };
  if (file.size > page.about.max_body_bytes) {
    const limit = Math.floor(page.about.max_body_bytes / 1e6);
    throw new Error(`The file is larger than the ${limit} MB that the server takes.`);
  }
  for (let attempt = 1; ; attempt += 1) {
    let response;
    try {
      response = await fetch("/classify", { method: "POST", body: file, headers: { "content-type": "application/octet-stream" } });
    } catch {
      throw new Error("The server cannot be reached. Is the network there?");
    }
    if (response.ok) return (await response.json()).predictions[0];
    if (![429, 503].includes(response.status) || attempt === TRIES) throw new Error(await problem(response));
    await new Promise((resolve) => setTimeout(resolve, 250 * 2 ** attempt * (1 + Math.random())));
  }
}

async function problem(response) {
  if ([429, 503].includes(response.status)) return "The server is overloaded. Try again in a while.";
  const text = await response.text();
  try { return JSON.parse(text).detail; } catch { return `The server answered ${response.status}.`; }
}

// What is seen

function card(file) {
  const made = byId("answer").content.firstElementChild.cloneNode(true);
  made.querySelector("h3").textContent = "…";
  made.querySelector(".note").textContent = nameOf(file);
  byId("answers").prepend(made);
  byId("answers-title").hidden = false;
  return made;
}

function nameOf(file) {
  const name = file.name || "pasted picture";
  return name.length > 60 ? `${name.slice(0, 40)}…${name.slice(-19)}` : name;
}

async function thumbnail(file, card) {
  const canvas = card.querySelector("canvas");
  try {
    const bitmap = await createImageBitmap(file, { resizeHeight: 192, resizeQuality: "medium" });
    const scale = Math.min(192 / bitmap.width, 1);
    canvas.width = canvas.height = 192;
    const [width, height] = [bitmap.width * scale, bitmap.height * scale];
    canvas.getContext("2d").drawImage(bitmap, (192 - width) / 2, (192 - height) / 2, width, height);
    bitmap.close();
  } catch {
    const context = canvas.getContext("2d");
    context.font = "48px sans-serif";
    context.fillStyle = "#8d867c";
    context.fillText("?", 36, 64);
  }
}

function show(answer, file, card) {
  const name = nameOf(file);
  card.classList.add(answer.status);
  const [title, note] = words(answer, name);
  card.querySelector("h3").textContent = title;
  card.querySelector(".note").textContent = note;
  card.querySelector(".bars").replaceChildren(...(answer.top_labels || []).map((label, i) => bar(label, answer.top_scores[i])));
}

function words(answer, name) {
  const size = answer.width ? `${name}, ${answer.width} x ${answer.height} px` : name;
  if (answer.status === "ok") return [answer.label, size];
  if (answer.status === "unsure" && answer.cause === "unlike-training") {
    return ["Not sure", `${size}. Unlike anything I was trained on; the nearest kinds are these:`];
  }
  if (answer.status === "unsure") return ["Not sure", `${size}. It could be any of these:`];
  if (answer.status === "rejected") return ["Not a picture I can read", `${name}: ${answer.detail} (${answer.cause})`];
  return ["No answer", `${name}: ${answer.detail}`];
}

function bar(label, score) {
  const item = document.createElement("li");
  const name = document.createElement("span");
  const value = document.createElement("span");
  const meter = document.createElement("progress");
  name.textContent = label;
  value.textContent = `${(100 * score).toFixed(1)} %`;
  Object.assign(meter, { max: 1, value: score });
  meter.setAttribute("aria-hidden", "true");
  item.append(name, meter, value);
  return item;
}

// The camera

async function openCamera() {
  if (!navigator.mediaDevices) { say("Browsers give the camera only to localhost and https addresses."); return; }
  try {
    byId("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    byId("camera-dialog").showModal();
  } catch (error) {
    say(error.name === "NotAllowedError" ? "The camera was not allowed." : "No camera was found.");
  }
}

function stopCamera() {
  for (const track of byId("video").srcObject?.getTracks() ?? []) track.stop();
  byId("video").srcObject = null;
}

function shoot() {
  const video = byId("video");
  const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  byId("camera-dialog").close();
  canvas.toBlob((blob) => take([new File([blob], "camera.png", { type: "image/png" })]), "image/png");
}

// In the browser

async function switchPlace() {
  const button = byId("local");
  if (page.local) {
    page.local = null;
    button.setAttribute("aria-checked", "false");
    byId("local-note").textContent = "Off: pictures are sent to the server.";
    return;
  }
  button.disabled = true;
  byId("local-note").textContent = "Loading the model…";
  try {
    const { openModel } = await import("/page/local.js");
    page.local = await openModel(page.about);
    button.setAttribute("aria-checked", "true");
    byId("local-note").textContent = "On: pictures stay in this browser; it works without a network now.";
  } catch (error) {
    byId("local-note").textContent = `It could not be loaded (${error.message}): pictures are sent to the server.`;
  }
  button.disabled = false;
  button.focus();
}

start();
