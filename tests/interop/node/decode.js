// Reads messages as JSON lines, and writes what the CloudEvents SDK makes of each.

const readline = require("node:readline");
const { HTTP, Kafka } = require("cloudevents");

function events(message) {
  const headers = { ...message.headers };
  const bytes = Buffer.from(message.body, "base64");
  if (message.content_type) {
    headers["content-type"] = message.content_type;
  }
  // The SDK wants text where the payload is text.
  const text = bytes.toString("utf8");
  const body = Buffer.from(text, "utf8").equals(bytes) ? text : bytes;
  if (message.sink === "kafka") {
    return [Kafka.toEvent({ headers, value: body, body })].flat();
  }
  return [HTTP.toEvent({ headers, body })].flat();
}

function shown(event) {
  const { data, data_base64: base64, ...attributes } = event;
  for (const name of Object.keys(attributes)) {
    if (attributes[name] === undefined) {
      delete attributes[name];
    } else {
      attributes[name] = String(attributes[name]);
    }
  }
  if (ArrayBuffer.isView(data)) {
    return { attributes, bytes: Buffer.from(data).toString("base64") };
  }
  return base64 ? { attributes, bytes: base64 } : { attributes, data };
}

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  let answer;
  try {
    answer = { events: events(JSON.parse(line)).map(shown) };
  } catch (error) {
    answer = { error: `${error.name}: ${error.message} ${JSON.stringify(error.errors ?? "")}` };
  }
  console.log(JSON.stringify(answer));
});
