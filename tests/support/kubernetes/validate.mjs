// Checks objects of the Prometheus operator, a JSON array on stdin, against the schemas of its CRDs. A line for each fault.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const kinds = join(process.argv[2], "node_modules/@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1");
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  const module = await import(pathToFileURL(join(kinds, `${object.kind}.js`)).href);
  try {
    new module[object.kind](object).validate();
  } catch (error) {
    console.log(`${object.kind}: ${error.message}`);
  }
}
