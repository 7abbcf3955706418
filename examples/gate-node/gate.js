// A validation gate in Node: verifies its signer's question, decides, signs its answer. Start yours from this.
//
//     npm install
//     SECRETS=gate-secrets.json CERTIFICATE=server.pem KEY=server.key PORT=8090 node gate.js
//
// CLIENT_CA=signers-ca.pem admits only signers with a certificate of that authority.

import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import standardwebhooks from "standardwebhooks";

const MAX_WEI = 10n ** 18n;
const MAX_BODY_BYTES = 512 * 1024; // no question is larger
const MAX_REMEMBERED = 10_000;

const { env } = process;
const secrets = JSON.parse(readFileSync(env.SECRETS, "utf8"));
const asks = new standardwebhooks.Webhook(secrets.request_hmac);
const answers = new standardwebhooks.Webhook(secrets.answer_hmac);
const seen = new Map(); // the newest uids, and what each was about

// Why not; an empty text is a yes. What is thrown here becomes a 500, which is a refusal too.
function decide({ signerInfo, requestInfo }) {
  if (signerInfo.kind !== "Signing") return `this gate does not know ${signerInfo.kind}`;
  if (signerInfo.blind !== false || !requestInfo.decoded) return "nothing but a hash is known";
  const { value } = requestInfo.decoded;
  if (typeof value !== "string" || BigInt(value) > MAX_WEI) return `not a transaction of at most ${MAX_WEI} wei`;
  return "";
}

function understand(body, headers) {
  // Verifies the raw body, and refuses a timestamp that is more than five minutes off.
  const question = asks.verify(body, headers);
  if (question.version !== "1" || question.type !== "validation.request") throw new Error("not for us");
  const { request_digest, signer_id, kind } = question.signerInfo;
  if (![question.uid, request_digest, signer_id, kind].every((text) => typeof text === "string")) throw new Error("incomplete");
  // A second attempt has the same uid and is about the same; anything else is not from an enclave.
  if ((seen.get(question.uid) ?? request_digest) !== request_digest) throw new Error("another question under the same uid");
  seen.set(question.uid, request_digest);
  if (seen.size > MAX_REMEMBERED) seen.delete(seen.keys().next().value);
  return [question, { request_digest, signer_id, kind }];
}

function reply(response, body, headers) {
  let question, echo;
  try {
    [question, echo] = understand(body, headers);
  } catch {
    return response.writeHead(401).end();
  }
  const reason = decide(question), now = new Date();
  if (!question.dryRun) console.log(question.uid, reason || "allowed"); // and whatever else a decision sets off
  const answer = JSON.stringify({
    type: "validation.answer", uid: question.uid, ...echo, dryRun: question.dryRun,
    allowed: reason === "", status: { reason },
    expiresAt: new Date(now.getTime() + 60_000).toISOString(),
  });
  response.writeHead(200, {
    "content-type": "application/json", "webhook-id": question.uid,
    "webhook-timestamp": Math.floor(now.getTime() / 1000),
    "webhook-signature": answers.sign(question.uid, now, answer),
  }).end(answer);
}

const tls = { cert: readFileSync(env.CERTIFICATE), key: readFileSync(env.KEY), minVersion: "TLSv1.2" };
if (env.CLIENT_CA) Object.assign(tls, { ca: readFileSync(env.CLIENT_CA), requestCert: true, rejectUnauthorized: true });

createServer(tls, (request, response) => {
  const chunks = [];
  let size = 0;
  request.on("data", (chunk) => {
    size += chunk.length;
    if (size <= MAX_BODY_BYTES) chunks.push(chunk);
    else if (!response.headersSent) response.writeHead(413, { connection: "close" }).end(() => request.destroy());
  });
  request.on("end", () => {
    if (response.headersSent) return;
    if (request.method !== "POST" || request.url !== "/validate") return response.writeHead(404).end();
    try {
      reply(response, Buffer.concat(chunks).toString(), request.headers);
    } catch (error) {
      console.error(error.message);
      response.writeHead(500).end();
    }
  });
}).listen(Number(env.PORT ?? 8090), env.HOST ?? "127.0.0.1");
