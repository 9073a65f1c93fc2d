// Drives the built-in page in a real browser.
//
//   node page.mjs ADDRESS CLOSED TOKEN SCREENSHOT
//
// ADDRESS is a gateway that trusts this machine, CLOSED one that lets in whoever has TOKEN. The browser reaches it through a proxy in this process, so that its connections can
// be cut while readings go on. Ends with code 0 only if every claim held; each is printed when it does.

import assert from "node:assert/strict";
import net from "node:net";
import { createRequire } from "node:module";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [address, closed, token, screenshot] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(process.env.TIDEGATE_TEST_PLAYWRIGHT);
const PATIENCE_MS = 60_000;
const FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/** Between browser and gateway; `cut` ends every connection and refuses new ones until `heal`. */
async function startProxy() {
  const sockets = new Set();
  let whole = true;
  const [host, port] = address.split(":");
  const server = net.createServer((browser) => {
    if (!whole) return browser.destroy();
    const gateway = net.connect(Number(port), host);
    for (const [one, other] of [[browser, gateway], [gateway, browser]]) {
      sockets.add(one);
      one.on("error", () => {});
      one.on("close", () => { sockets.delete(one); other.destroy(); });
      one.pipe(other);
    }
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  return {
    address: `127.0.0.1:${server.address().port}`,
    cut() { whole = false; sockets.forEach((socket) => socket.destroy()); },
    heal() { whole = true; },
    close() { sockets.forEach((socket) => socket.destroy()); server.close(); },
  };
}

let published = 0;
async function publish(topic, payload) {
  const path = topic.split("/").map(encodeURIComponent).join("/");
  const reply = await fetch(`http://${address}/realtime/topic/${path}`, { method: "POST", body: payload });
  assert.equal(reply.status, 200, await reply.text());
  published += 1;
}

const folder = await mkdtemp(join(tmpdir(), "tidegate-browser-"));
const proxy = await startProxy();
const context = await chromium.launchPersistentContext(folder, { executablePath: process.env.TIDEGATE_TEST_CHROMIUM, headless: true, args: FLAGS, viewport: { width: 1180, height: 760 } });
const page = context.pages()[0] ?? await context.newPage();
page.setDefaultTimeout(PATIENCE_MS);
const troubles = [];
page.on("pageerror", (error) => troubles.push(String(error)));
page.on("console", (message) => { if (/Content Security Policy|Refused to/.test(message.text())) troubles.push(message.text()); });

const received = () => page.locator("#received").innerText().then((text) => Number(text.replaceAll(",", "")));
const shown = (topic) => page.locator(`#rows tr[data-topic=${JSON.stringify(topic)}] td.value`);
const live = () => page.locator("#state", { hasText: "live" }).waitFor();
async function receivedAll() {
  await page.waitForFunction((expected) => Number(document.getElementById("received").textContent.replaceAll(",", "")) >= expected, published);
  assert.equal(await received(), published, "every reading is received once");
}
async function claim(what, check) {
  await check();
  assert.deepEqual(troubles, []);
  console.log(`ok: ${what}`);
}

try {
  await claim("a reading from before the page was opened is there", async () => {
    await publish("sensors/boiler/temperature", "71.50");
    await page.goto(`http://${proxy.address}/`);
    await live();
    await receivedAll();
    assert.equal(await shown("sensors/boiler/temperature").innerText(), "71.50");
  });

  await claim("readings arrive live, and every kind of payload is shown as text", async () => {
    for (let n = 0; n < 24; n += 1) await publish("sensors/boiler/temperature", (72 + 6 * Math.sin(n / 3)).toFixed(2));
    for (let n = 0; n < 24; n += 1) await publish("sensors/hall/humidity", `{"value":${40 + (n * 7) % 11},"unit":"%"}`);
    await publish("iot/sensors", "Temperature: 22.5°C");
    await publish("devices/sensor01/status", "online");
    await publish("camera/frame", new Uint8Array([255, 0, 254]));
    await receivedAll();
    assert.equal(await shown("iot/sensors").innerText(), "Temperature: 22.5°C");
    assert.equal(await shown("camera/frame").innerText(), "base64 /wD+");
    assert.match(await page.locator('tr[data-topic="sensors/hall/humidity"] polyline').getAttribute("points"), /^0\.0,.* 120\.0,/);
  });

  await claim("markup in topics and payloads stays text", async () => {
    const hostile = '<img src="x" onerror="window.hacked=1"><script>window.hacked=1</script>';
    await publish(hostile, JSON.stringify({ value: hostile }));
    await publish("hostile/text", hostile);
    await receivedAll();
    assert.equal(await shown("hostile/text").innerText(), hostile);
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    assert.equal(await page.locator("#rows img, #rows script").count(), 0);
  });

  await claim("the health of each part is told", async () => {
    for (const part of ["appliance", "mqtt", "journal", "kafka", "gateway"]) await page.locator(`#parts [data-part=${part}]`).waitFor();
    assert.match(await page.locator("#parts [data-part=kafka]").innerText(), /down[^]*no broker answers[^]*behind/);
  });
  await page.locator("#parts [data-part=gateway]", { hasText: "1 event streams" }).waitFor();
  if (screenshot) await page.screenshot({ path: screenshot });

  await claim("a connection that is cut misses nothing", async () => {
    proxy.cut();
    await page.locator("#state", { hasNotText: "live" }).waitFor();
    for (let n = 0; n < 40; n += 1) await publish("sensors/boiler/temperature", `${n}`);
    proxy.heal();
    await live();
    await receivedAll();
    assert.equal(await shown("sensors/boiler/temperature").innerText(), "39");
  });

  await claim("a page that is left and opened again misses nothing", async () => {
    await page.goto("about:blank");
    for (let n = 0; n < 40; n += 1) await publish("sensors/boiler/temperature", `${100 + n}`);
    await page.goBack();
    await live();
    await receivedAll();
    await page.reload();
    await publish("sensors/boiler/temperature", "7");
    await receivedAll();
    assert.equal(await shown("sensors/boiler/temperature").innerText(), "7");
    assert.equal(await shown("devices/sensor01/status").innerText(), "online", "the table is as it was");
  });

  await claim("a Topic Filter shows what it matches, and a wrong one is explained", async () => {
    await page.locator("#filter").fill("sensors/+/humidity");
    await page.locator("#filter").press("Enter");
    await live();
    await publish("sensors/boiler/temperature", "8");
    await publish("sensors/hall/humidity", "55");
    await shown("sensors/hall/humidity").filter({ hasText: "55" }).waitFor();
    assert.deepEqual(await page.locator("#rows tr").evaluateAll((all) => all.map((row) => row.dataset.topic)), ["sensors/hall/humidity"]);
    await page.locator("#filter").fill("a/#/b");
    await page.locator("#filter").press("Enter");
    await page.locator("#notice", { hasText: "wildcard" }).waitFor();
  });

  await claim("whoever has the token gets in, and it does not stay in the address", async () => {
    assert.equal((await fetch(`http://${closed}/`, { headers: { accept: "text/html" } })).status, 401);
    await page.goto(`http://${closed}/?token=${token}&filter=a/%23`);
    await live();
    assert.equal(page.url(), `http://${closed}/?filter=a%2F%23`);
    const headers = { authorization: `Bearer ${token}` };
    const reply = await fetch(`http://${closed}/realtime/topic/a/b`, { method: "POST", body: "5", headers });
    assert.equal(reply.status, 200);
    await shown("a/b").filter({ hasText: "5" }).waitFor();
  });
} catch (error) {
  console.error(error);
  console.error(`state: ${await page.locator("#state").innerText().catch(() => "?")}, received ${await received().catch(() => "?")} of ${published}`);
  process.exitCode = 1;
} finally {
  await context.close();
  proxy.close();
  await rm(folder, { recursive: true, force: true });
}
