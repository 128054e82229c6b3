'use strict';

const fs = require('node:fs');
const path = require('node:path');

/** Reads the environment once, at start; a missing or malformed value ends the process with one line. */
function settings(env) {
  const need = (name) => {
    if (!env[name]) throw new Error(`environment variable ${name} is not set`);
    return env[name];
  };
  const port = (name) => {
    const value = Number(need(name));
    if (!Number.isInteger(value) || value < 1 || value > 65535) {
      throw new Error(`environment variable ${name} is ${env[name]}; expected a port number`);
    }
    return value;
  };
  const passwordFile = need('PGPASSWORD_FILE');
  return {
    host: need('HOST'),
    port: port('PORT'),
    site: need('SITE'),
    name: need('NAME'),
    version: env.RELEASE || release(),
    nodes: nodes(env.RELIGHT_NODES || '{}'),
    poolSize: Number(env.PGPOOL_MAX || 10),
    database: {
      host: need('PGHOST'),
      port: port('PGPORT'),
      database: need('PGDATABASE'),
      user: need('PGUSER'),
      // Read at each connection, so that a rotated password needs no restart.
      password: async () => (await fs.promises.readFile(passwordFile, 'utf8')).trim(),
    },
  };
}

/** The release folder's own name for itself; read at start, so that it is the release that runs, not the newest. */
function release() {
  try {
    return fs.readFileSync(path.join(__dirname, 'RELEASE'), 'utf8').trim();
  } catch (error) {
    if (error.code === 'ENOENT') return 'unreleased';
    throw error;
  }
}

/** RELIGHT_NODES: {"west-pg1": "127.0.1.31:5432"}, as seen from this server's site. */
function nodes(text) {
  const found = new Map();
  for (const [node, address] of Object.entries(JSON.parse(text))) {
    const [, host, port] = /^(.+):(\d+)$/.exec(address) || [];
    if (!host) throw new Error(`RELIGHT_NODES: ${node} is ${JSON.stringify(address)}; expected "host:port"`);
    found.set(node, { host, port: Number(port) });
  }
  return found;
}

module.exports = { settings };
