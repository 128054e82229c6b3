'use strict';

// The application server of the lab: writes numbered events, reads them back, says how it is and what it sees.
// It never retries a write: a retry could double one whose answer was lost.

const http = require('node:http');

const { Database, NotWritten } = require('./database');
const { Metrics } = require('./metrics');
const { settings } = require('./settings');
const { vantage } = require('./vantage');

const BODY_BYTES = 64 * 1024;
const STOP_MS = 1800;
const CLIENT = /^[\w.-]{1,64}$/;

class BadRequest extends Error {}

/** Routes: [method, pattern, label for metrics, handler(match, request, url) -> [status, JSON or text]]. */
function routes(config, database, metrics, connections) {
  const me = { site: config.site, app: config.name };
  const health = { ...me, version: config.version };
  return [
    ['GET', /^\/healthz$/, '/healthz', async () => [200, { status: 'alive', ...health }]],
    ['GET', /^\/readyz$/, '/readyz', async () => {
      try {
        await database.answers();
        return [200, { status: 'ready', ...health }];
      } catch (error) {
        return [503, { status: 'not ready', reason: error.message, ...health }];
      }
    }],
    ['GET', /^\/metrics$/, '/metrics', async () => [200, metrics.render(database, await connections())]],
    ['GET', /^\/vantage$/, '/vantage', async () => [200, await vantage(config.site, config.nodes, config.database)]],
    ['POST', /^\/events$/, '/events', async (_match, request) => {
      const { n, client, payload } = await event(request);
      try {
        return [201, { n, node: await database.insert(n, client, payload), ...me }];
      } catch (error) {
        if (!(error instanceof NotWritten)) throw error;
        return [503, { n, state: error.state, reason: error.message, ...me }];
      }
    }],
    ['GET', /^\/events\/count$/, '/events/count', async (_match, _request, url) => {
      return [200, { ...await database.count(url.searchParams.get('client')), ...me }];
    }],
    ['GET', /^\/events\/([\w.-]{1,64})\/(\d{1,15})$/, '/events/:client/:n', async ([, client, n]) => {
      const rows = await database.read(client, Number(n));
      return rows.length ? [200, { ...rows[0], rows: rows.length, ...me }] : [404, { reason: `no event ${client}/${n}` }];
    }],
  ];
}

async function event(request) {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size > BODY_BYTES) throw new BadRequest(`body above ${BODY_BYTES} bytes`);
    chunks.push(chunk);
  }
  let body;
  try {
    body = JSON.parse(Buffer.concat(chunks).toString('utf8'));
  } catch {
    throw new BadRequest('body is not JSON; expected {"n": 1, "client": "load", "payload": …}');
  }
  if (!Number.isSafeInteger(body?.n) || body.n < 0) throw new BadRequest('"n" is not a whole number from 0');
  if (typeof body.client !== 'string' || !CLIENT.test(body.client)) throw new BadRequest(`"client" does not match ${CLIENT}`);
  return body;
}

async function answer(table, request) {
  let url;
  try {
    url = new URL(`http://app${request.url}`);
  } catch {
    return ['other', 400, { reason: 'not a path' }];
  }
  const here = table.map(([method, pattern, label, handle]) => [method, pattern.exec(url.pathname), label, handle])
    .filter(([, match]) => match);
  const [, match, label, handle] = here.find(([method]) => method === request.method) || [];
  if (!here.length) return ['other', 404, { reason: `no ${url.pathname} here` }];
  if (!handle) return [here[0][2], 405, { reason: `${request.method} is not for ${url.pathname}` }];
  try {
    return [label, ...await handle(match, request, url)];
  } catch (error) {
    if (error instanceof BadRequest) return [label, 400, { reason: error.message }];
    return [label, 503, { reason: error.message }];
  }
}

function send(response, status, body, closing) {
  const isText = typeof body === 'string';
  const bytes = Buffer.from(isText ? body : `${JSON.stringify(body)}\n`);
  response.writeHead(status, {
    'content-type': isText ? 'text/plain; version=0.0.4; charset=utf-8' : 'application/json',
    'content-length': bytes.length,
    ...(closing ? { connection: 'close' } : {}),
  });
  response.end(bytes);
}

function serve(config) {
  const database = new Database(config.database, config.poolSize);
  const metrics = new Metrics(config.site, config.name);
  let closing = false;

  const server = http.createServer({ keepAliveTimeout: 15000, headersTimeout: 5000, requestTimeout: 5000 });
  const connections = () => new Promise((resolve) => { server.getConnections((_error, count) => resolve(count || 0)); });
  const table = routes(config, database, metrics, connections);
  server.on('request', async (request, response) => {
    const began = process.hrtime.bigint();
    metrics.inFlight += 1;
    response.once('close', () => { metrics.inFlight -= 1; });
    const [label, status, body] = await answer(table, request);
    metrics.observe(request.method, label, status, Number(process.hrtime.bigint() - began) / 1e9);
    send(response, status, body, closing || status === 400);
  });

  const stop = () => {
    if (closing) return;
    closing = true;
    const last = setTimeout(() => process.exit(0), STOP_MS); // requests that hang do not hold up a stop
    server.close(async () => {
      await database.close();
      clearTimeout(last);
      process.exit(0);
    });
    server.closeIdleConnections();
  };
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
  server.on('error', (error) => {
    process.stderr.write(`cannot serve on ${config.host}:${config.port}: ${error.message}\n`);
    process.exit(1);
  });
  server.listen(config.port, config.host, () => {
    process.stdout.write(`${config.name} (${config.site}) serves on ${config.host}:${config.port}\n`);
    database.watch();
  });
}

let config;
try {
  config = settings(process.env);
} catch (error) {
  process.stderr.write(`${error.message}\n`);
  process.exit(2);
}
serve(config);
