// openapi.json as a page: every path with what it takes and answers, and every schema with its fields.

const element = (tag, text, ...children) => {
  const made = document.createElement(tag);
  made.append(...(text ? [text] : []), ...children);
  return made;
};

const kind = (schema) => {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.enum) return schema.enum.join(", ");
  if (schema.type === "array") return `list of ${schema.items ? kind(schema.items) : "values"}`;
  return schema.format === "binary" ? "bytes" : schema.type ?? "anything";
};

const table = (rows) => element("table", "", element("tbody", "", ...rows.map((cells) => element("tr", "", ...cells.map((cell) => element("td", cell))))));

function operation(path, method, said) {
  const body = Object.keys(said.requestBody?.content ?? {}).join(", ");
  const answers = Object.entries(said.responses).map(([status, each]) => {
    const schema = each.content?.["application/json"]?.schema;
    return [status, schema ? kind(schema) : "", each.description];
  });
  return [
    element("h2", `${method.toUpperCase()} ${path}`), element("p", said.description ?? said.summary ?? ""),
    ...(body ? [element("p", `Body: ${body}`)] : []), table(answers),
  ];
}

const api = await (await fetch("/openapi.json")).json();
for (const here of document.querySelectorAll(".here")) here.textContent = location.origin;
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, said] of Object.entries(methods)) document.getElementById("paths").append(...operation(path, method, said));
}
for (const [name, schema] of Object.entries(api.components.schemas)) {
  const fields = Object.entries(schema.properties ?? {}).map(([field, each]) => [field, kind(each), each.description ?? ""]);
  document.getElementById("schemas").append(element("h3", name), element("p", schema.description ?? ""), table(fields));
}
