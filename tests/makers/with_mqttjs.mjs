// Uses a broker through MQTT.js, in node and in a real browser.
//
//   node with_mqttjs.mjs TCP WS HTTP PAGE
//
// TCP and WS are the broker's addresses, HTTP is the appliance's, which carries MQTT at /mqtt; PAGE is where this program
// serves the page from that the browser opens. Ends with code 0 only if every claim held; each is printed when it does.

import { createServer } from "node:http";
import { createRequire } from "node:module";
import { readFile, rm } from "node:fs/promises";
import { mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [tcp, ws, http, page] = process.argv.slice(2);
const require = createRequire(import.meta.url);
const folder = process.env.TIDEGATE_TEST_MQTTJS;
const { chromium } = require(process.env.TIDEGATE_TEST_PLAYWRIGHT);
const PATIENCE_MS = 60_000;
const FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/** What is claimed of one address and one version; runs in node and in the browser, so it knows nothing of either. */
async function use(mqtt, url, protocolVersion, name) {
  const topic = `makers/mqttjs/${name}`;
  const options = protocolVersion === 3 ? { protocolId: "MQIsdp" } : {};
  const open = (clientId, more = {}) => mqtt.connectAsync(url, { protocolVersion, clientId: `${name}-${clientId}`, connectTimeout: 20_000, reconnectPeriod: 0, ...options, ...more });
  const listen = (client) => {
    const seen = [];
    let awaited = null;
    client.on("message", (_topic, payload, packet) => {
      seen.push({ payload: payload.toString(), retain: packet.retain, properties: packet.properties });
      awaited?.();
    });
    return async (count) => {
      await new Promise((resolve, reject) => {
        awaited = () => seen.length >= count && resolve();
        awaited();
        setTimeout(() => reject(new Error(`${name}: ${seen.length} of ${count} publishes came`)), 30_000);
      });
      return seen.splice(0, count);
    };
  };
  const same = (left, right) => {
    if (JSON.stringify(left) !== JSON.stringify(right)) throw new Error(`${name}: ${JSON.stringify(left)} is not ${JSON.stringify(right)}`);
  };

  // Every QoS, each once.
  const subscriber = await open("subscriber");
  const next = listen(subscriber);
  await subscriber.subscribeAsync(`${topic}/+`, { qos: 2 });
  const publisher = await open("publisher");
  for (let number = 0; number < 30; number++) await publisher.publishAsync(`${topic}/data`, String(number), { qos: number % 3 });
  await publisher.publishAsync(`${topic}/data`, "last", { qos: 2 });
  const numbers = (await next(31)).map(({ payload }) => payload).filter((payload) => payload !== "last").map(Number);
  same(numbers.sort((left, right) => left - right), Array.from({ length: 30 }, (_, number) => number));

  // Retained, and cleared.
  await publisher.publishAsync(`${topic}/state/kept`, "on", { qos: 1, retain: true });
  await subscriber.subscribeAsync(`${topic}/state/kept`, { qos: 1 });
  const [kept] = await next(1);
  same([kept.payload, kept.retain], ["on", true]);
  await publisher.publishAsync(`${topic}/state/kept`, "", { qos: 1, retain: true });
  await next(1);

  // The Will of one that vanishes.
  const mortal = await open("mortal", { will: { topic: `${topic}/will`, payload: "gone", qos: 1, retain: false } });
  mortal.stream.destroy();
  same((await next(1))[0].payload, "gone");

  // A session goes on where it was.
  const keep = protocolVersion === 5 ? { clean: false, properties: { sessionExpiryInterval: 300 } } : { clean: false };
  const keeper = await open("keeper", keep);
  await keeper.subscribeAsync(`${topic}/offline/#`, { qos: 1 });
  await keeper.endAsync();
  for (let number = 0; number < 10; number++) await publisher.publishAsync(`${topic}/offline/x`, String(number), { qos: 1 });
  const again = mqtt.connect(url, { protocolVersion, clientId: `${name}-keeper`, reconnectPeriod: 0, ...options, ...keep });
  const backlog = listen(again);
  const connack = await new Promise((resolve, reject) => { again.once("connect", resolve); again.once("error", reject); });
  if (protocolVersion > 3) same(connack.sessionPresent, true);
  same((await backlog(10)).map(({ payload }) => payload), Array.from({ length: 10 }, (_, number) => String(number)));
  await again.endAsync();

  // Properties.
  if (protocolVersion === 5) {
    const properties = { contentType: "application/json", userProperties: { site: "north" }, responseTopic: "answers", messageExpiryInterval: 600 };
    await publisher.publishAsync(`${topic}/data`, "{}", { qos: 1, properties });
    const got = (await next(1))[0].properties;
    same([got.contentType, got.userProperties.site, got.responseTopic], ["application/json", "north", "answers"]);
  }
  await subscriber.endAsync();
  await publisher.endAsync();
}

const held = (claim) => console.log("held:", claim);
const VERSIONS = { 3: "3.1", 4: "3.1.1", 5: "5" };

async function inNode() {
  const mqtt = require(folder);
  const addresses = { tcp: `mqtt://${tcp}`, ws: `ws://${ws}`, http: `ws://${http}/mqtt` };
  for (const [way, url] of Object.entries(addresses)) {
    for (const version of [3, 4, 5]) {
      await use(mqtt.default ?? mqtt, url, version, `node-${way}-${version}`);
      held(`node: MQTT ${VERSIONS[version]} at ${url}`);
    }
  }
}

async function inBrowser() {
  const bundle = await readFile(join(folder, "dist/mqtt.min.js"), "utf8");
  const server = createServer((_request, response) => response.setHeader("content-type", "text/html").end("<!doctype html><title>page</title>"));
  const [host, port] = page.split(":");
  await new Promise((listening) => server.listen(Number(port), host, listening));
  const profile = mkdtempSync(join(tmpdir(), "tidegate-mqttjs-"));
  const context = await chromium.launchPersistentContext(profile, { executablePath: process.env.TIDEGATE_TEST_CHROMIUM, headless: true, args: FLAGS, timeout: PATIENCE_MS });
  try {
    const tab = context.pages()[0] ?? (await context.newPage());
    tab.on("pageerror", (error) => console.log("the page:", error.message));
    console.log("Chromium", await tab.evaluate(() => navigator.userAgent.match(/Chrome\/([\d.]+)/)[1]));
    await tab.goto(`http://${page}/`);
    await tab.addScriptTag({ content: bundle });
    await tab.addScriptTag({ content: `window.use = ${use.toString()}` });
    for (const [way, url] of Object.entries({ ws: `ws://${ws}`, http: `ws://${http}/mqtt` })) {
      for (const version of [4, 5]) {
        await tab.evaluate(([url, version, name]) => window.use(window.mqtt, url, version, name), [url, version, `page-${way}-${version}`]);
        held(`browser: MQTT ${VERSIONS[version]} at ${url}`);
      }
    }
  } finally {
    await context.close();
    server.close();
    await rm(profile, { recursive: true, force: true });
  }
}

setTimeout(() => { console.log("not finished in time"); process.exit(1); }, 4 * PATIENCE_MS).unref();
console.log("MQTT.js", JSON.parse(readFileSync(join(folder, "package.json"), "utf8")).version, "on node", process.version);
await inNode();
await inBrowser();
process.exit(0);
