// Proves with SCRAM-SHA-256, in AUTH of MQTT 5, who it is: MQTT.js carries the messages, scramp (Python) makes them.
//
//   node with_mqttjs_scram.mjs TCP PYTHON
//
// TCP is the broker's address; it knows `ada` with the password `lovelace` and `bob` with `builder`, and nobody else.
// Ends with code 0 only if every claim held; each is printed when it does.

import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const [tcp, python] = process.argv.slice(2);
const mqtt = createRequire(import.meta.url)(process.env.TIDEGATE_TEST_MQTTJS);
const METHOD = "SCRAM-SHA-256";
const [CONTINUE, REAUTHENTICATE, NOT_AUTHORIZED] = [24, 25, 135];
const PATIENCE_MS = 30_000;

const same = (left, right, what) => {
  if (JSON.stringify(left) !== JSON.stringify(right)) throw new Error(`${what}: ${JSON.stringify(left)} is not ${JSON.stringify(right)}`);
};
const soon = (what, promise) => Promise.race([promise, new Promise((_, reject) => setTimeout(() => reject(new Error(`not in time: ${what}`)), PATIENCE_MS).unref())]);

/** The library, in a process of its own. */
const library = spawn(python, [fileURLToPath(new URL("scram.py", import.meta.url))], { stdio: ["pipe", "pipe", "inherit"] });
const lines = createInterface({ input: library.stdout })[Symbol.asyncIterator]();
const answer = async () => (await soon("scramp answers", lines.next())).value;
const ask = (line) => { library.stdin.write(`${line}\n`); return answer(); };
console.log("MQTT.js", createRequire(import.meta.url)(`${process.env.TIDEGATE_TEST_MQTTJS}/package.json`).version, "and", await answer());

const authentication = (data) => ({ authenticationMethod: METHOD, authenticationData: Buffer.from(data) });
const dataOf = (packet) => packet.properties?.authenticationData?.toString() ?? "";

let number = 0;

/**
 * Connects. `changes.first`, `changes.challenge` and `changes.last` change a message on its way. Resolves to the client, if it
 * was let in, the messages that went to and fro, and the Reason Code of CONNACK.
 */
async function connect(user, password, changes = {}) {
  const asItIs = (message) => message;
  const { first = asItIs, challenge = asItIs, last = asItIs } = changes;
  const seen = { first: first(await ask(`begin ${user} ${password}`)) };
  const client = mqtt.connect(`mqtt://${tcp}`, { protocolVersion: 5, clientId: `scram-${number++}`, reconnectPeriod: 0, properties: authentication(seen.first) });
  client.handleAuth = async (packet, done) => {
    if (packet.reasonCode === CONTINUE) {
      seen.challenge = dataOf(packet);
      seen.last = last(await ask(`challenge ${challenge(seen.challenge)}`));
      done(undefined, { cmd: "auth", reasonCode: CONTINUE, properties: authentication(seen.last) });
    } else {
      client.emit("proven-again", packet);
      done();
    }
  };
  const connack = new Promise((resolve, reject) => {
    client.on("packetreceive", (packet) => packet.cmd === "connack" && resolve(packet));
    client.on("error", (error) => error.code ?? reject(error));
  });
  const packet = await soon("CONNACK", connack);
  seen.reason = packet.reasonCode;
  if (seen.reason === 0) {
    same(packet.properties.authenticationMethod, METHOD, "the method in CONNACK");
    same(await ask(`finish ${dataOf(packet)}`), "proven", "the server knows the password, too");
  } else {
    same(dataOf(packet), "", "nothing is proven to who is refused");
    client.end(true);
  }
  return { client, ...seen };
}

/** Proves again who it is; resolves to the Reason Code of the answer. */
async function proveAgain(client, user, password) {
  const first = await ask(`begin ${user} ${password}`);
  const outcome = new Promise((resolve) => {
    client.once("proven-again", resolve);
    client.once("disconnect", resolve);
  });
  client._sendPacket({ cmd: "auth", reasonCode: REAUTHENTICATE, properties: authentication(first) });
  const packet = await soon("an answer to the new proof", outcome);
  if (packet.reasonCode === 0) same(await ask(`finish ${dataOf(packet)}`), "proven", "the server proves itself again");
  return packet.reasonCode;
}

const publish = (client, topic) => client.publishAsync(topic, "1", { qos: 1 }).then(() => 0, (error) => error.code);
const refused = async (claim, ...login) => {
  const seen = await connect(...login);
  same(seen.reason, NOT_AUTHORIZED, claim);
  return seen;
};
/** A challenge with what is random in it left out. */
const shape = ({ challenge }) => challenge.replace(/r=[^,]*/, ({ length }) => `r*${length}`).replace(/s=[^,]*/, ({ length }) => `s*${length}`);
const salt = ({ challenge }) => challenge.match(/s=([^,]*)/)[1];

const claims = {
  "the right password lets in, as the user that it is of": async () => {
    const { client } = await connect("ada", "lovelace");
    same(await publish(client, "sensors/ada/t"), 0, "its own topic");
    same(await publish(client, "sensors/bob/t"), NOT_AUTHORIZED, "another's topic");
    client.end(true);
  },
  "a wrong password and an unknown user are told apart by nothing": async () => {
    const wrong = await refused("a wrong password", "ada", "Lovelace");
    const unknown = await refused("an unknown user", "eve", "lovelace");
    same(shape(unknown), shape(wrong), "the challenge");
    for (const seen of [wrong, unknown]) same(salt(await refused("again", seen.first.match(/n=([^,]*)/)[1], "other")), salt(seen), "the salt of a name stays");
    if (salt(wrong) === salt(unknown)) throw new Error("a salt of its own for every name");
  },
  "a nonce that is not the server's is refused": async () => {
    await refused("changed on the way", "ada", "lovelace", { challenge: (message) => message.replace(/^r=([^,]*)/, "r=$1x") });
    await refused("cut on the way", "ada", "lovelace", { challenge: (message) => message.replace(/^r=([^,]*).,/, "r=$1,") });
  },
  "what was overheard cannot be said again": async () => {
    const overheard = await connect("ada", "lovelace");
    overheard.client.end(true);
    await refused("the messages of another connection", "ada", "lovelace", { first: () => overheard.first, challenge: () => overheard.challenge, last: () => overheard.last });
  },
  "who is connected proves itself again": async () => {
    const { client } = await connect("ada", "lovelace");
    for (let round = 0; round < 2; round++) {
      same(await proveAgain(client, "ada", "lovelace"), 0, "the right password");
      same(await publish(client, "sensors/ada/t"), 0, "it goes on");
    }
    same(await proveAgain(client, "ada", "Lovelace"), NOT_AUTHORIZED, "a wrong password");
    client.end(true);
  },
  "nobody becomes somebody else": async () => {
    const { client } = await connect("ada", "lovelace");
    same(await proveAgain(client, "bob", "builder"), NOT_AUTHORIZED, "another user, with the right password");
    client.end(true);
  },
};
for (const [claim, hold] of Object.entries(claims)) {
  await hold();
  console.log("held:", claim);
}
library.stdin.end();
