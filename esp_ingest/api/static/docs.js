// Shows /openapi.json: every operation with its parameters, body, answers and examples. No other host is asked.

const element = (tag, text, attributes = {}) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

const pretty = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));

const kind = (schema = {}) => {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.const !== undefined) return String(schema.const);
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.type === "array") return `list of ${kind(schema.items)}`;
  return schema.format ? `${schema.type} (${schema.format})` : schema.type ?? "any";
};

const table = (heads, rows) => {
  const scroll = element("div", undefined, { class: "scroll" });
  const made = element("table");
  const head = element("tr");
  heads.forEach((text) => head.append(element("th", text, { scope: "col" })));
  made.append(head);
  for (const row of rows) {
    const line = element("tr");
    row.forEach((text) => line.append(element("td", text)));
    made.append(line);
  }
  scroll.append(made);
  return scroll;
};

const example = (content = {}) =>
  Object.entries(content).filter(([, media]) => media.example !== undefined)
    .flatMap(([type, media]) => [element("p", type), element("pre", pretty(media.example), { tabindex: "0" })]);

const operation = (method, path, described) => {
  const made = element("details");
  const summary = element("summary");
  summary.append(element("span", method.toUpperCase(), { class: "method" }), " ", element("code", path), ` — ${described.summary ?? ""}`);
  made.append(summary);
  if (described.description) made.append(element("p", described.description));
  if (described.parameters?.length) {
    made.append(element("h3", "Parameters"), table(["name", "in", "type", ""], described.parameters.map((each) => [
      each.required ? `${each.name} (required)` : each.name, each.in, kind(each.schema), each.description ?? each.schema?.description ?? "",
    ])));
  }
  if (described.requestBody) made.append(element("h3", "Body"), ...example(described.requestBody.content));
  made.append(element("h3", "Answers"), table(["status", "", "formats"], Object.entries(described.responses).map(([status, answer]) => [
    status, answer.description, Object.keys(answer.content ?? {}).join(", "),
  ])));
  for (const answer of Object.values(described.responses)) made.append(...example(answer.content));
  made.dataset.text = `${method} ${path} ${described.summary} ${described.description}`.toLowerCase();
  return made;
};

const show = (schema) => {
  document.getElementById("about").textContent = `${schema.info.description} Version ${schema.info.version}, OpenAPI ${schema.openapi}.`;
  const groups = new Map();
  for (const [path, methods] of Object.entries(schema.paths)) {
    for (const [method, described] of Object.entries(methods)) {
      const tag = described.tags?.[0] ?? "other";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(operation(method, path, described));
    }
  }
  const main = document.getElementById("operations");
  for (const [tag, operations] of groups) {
    const section = element("section");
    section.append(element("h2", tag), ...operations);
    main.append(section);
  }
};

document.getElementById("find").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  for (const each of document.querySelectorAll("details")) each.hidden = !each.dataset.text.includes(wanted);
});

try {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`/openapi.json answered ${answer.status}`);
  show(await answer.json());
} catch (error) {
  document.getElementById("about").textContent = `The schema cannot be shown (${error.message}): reload this page.`;
}
