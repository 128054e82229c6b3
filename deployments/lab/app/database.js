'use strict';

const { Pool } = require('pg');

const TIMEOUT_MS = 4500;
const PROBE_MS = 500;

// After these the server, or the pooler, may have committed although no answer came: connection lost (08),
// ended by an operator or a crash (57P01, 57P02, 57P05).
const UNKNOWN = /^(08...|57P0[125])$/;
// PgBouncer reports its own refusals under 08P01 too; in these the statement never reached a server.
const NEVER_SENT = /query_wait_timeout|cannot connect to server|login has been failing|server login failed|no such database|pause|shut ?down|connect failed/i;

/** A write that was not acknowledged. `state`: "refused" (nothing was written) or "unknown" (may have been). */
class NotWritten extends Error {
  constructor(state, reason) {
    super(reason);
    this.state = state;
  }
}

class Database {
  constructor(database, poolSize) {
    // No server-side settings in the start-up packet: PgBouncer refuses parameters that it does not track.
    this.pool = this.#pool({ ...database, max: poolSize, connectionTimeoutMillis: TIMEOUT_MS, query_timeout: TIMEOUT_MS });
    // Probes have connections of their own: writes that hang must not make the server look unready.
    this.probes = this.#pool({ ...database, max: 2, connectionTimeoutMillis: PROBE_MS, query_timeout: PROBE_MS });
    this.writable = false;
    this.errors = 0;
  }

  #pool(config) {
    const pool = new Pool({ ...config, idleTimeoutMillis: 10000, keepAlive: true });
    // Without listeners a connection that breaks while idle, or between two queries, would end the process.
    pool.on('error', () => { this.errors += 1; });
    pool.on('connect', (client) => {
      client.on('error', () => { this.errors += 1; });
      client.on('notice', (notice) => { if (notice.severity === 'WARNING') client.warning = notice.message; });
    });
    return pool;
  }

  /** Inserts one event; returns the database node's name, only after its commit. Throws NotWritten. */
  async insert(n, client, payload) {
    let connection;
    try {
      connection = await this.pool.connect();
    } catch (error) {
      throw new NotWritten('refused', `no database connection: ${error.message}`);
    }
    connection.warning = null;
    let failure = null;
    try {
      const { rows } = await connection.query(
        `INSERT INTO events (n, client, payload) VALUES ($1, $2, $3)
         RETURNING coalesce(nullif(current_setting('cluster_name'), ''), host(inet_server_addr())) AS node`,
        [n, client, JSON.stringify(payload ?? null)],
      );
      // A cancelled wait for the synchronous standby is "success with a warning": committed here, perhaps nowhere else.
      if (connection.warning) throw new NotWritten('unknown', connection.warning);
      return rows[0].node;
    } catch (error) {
      failure = error;
      if (error instanceof NotWritten) throw error;
      throw new NotWritten(stateAfter(error), error.message);
    } finally {
      const answered = failure && failure.severity === 'ERROR' && !UNKNOWN.test(failure.code);
      connection.release(failure && !answered ? failure : undefined);
    }
  }

  async read(client, n) {
    const { rows } = await this.pool.query(
      'SELECT n::text, client, payload, at FROM events WHERE client = $1 AND n = $2', [client, n]);
    return rows.map((row) => ({ ...row, n: Number(row.n) }));
  }

  async count(client) {
    const { rows } = await this.pool.query(
      'SELECT count(*)::text AS rows, count(DISTINCT n)::text AS numbers FROM events WHERE $1::text IS NULL OR client = $1',
      [client]);
    return { rows: Number(rows[0].rows), numbers: Number(rows[0].numbers) };
  }

  /** Resolves when the database answers `SELECT 1` in time; rejects otherwise. */
  async answers() {
    await within(PROBE_MS, this.probes.query('SELECT 1'));
  }

  /** Asks every 500 ms whether the database behind the pool takes writes; `writable` is the newest answer. */
  watch() {
    const ask = async () => {
      try {
        const { rows } = await within(PROBE_MS, this.probes.query(
          "SELECT NOT pg_is_in_recovery() AND current_setting('default_transaction_read_only') = 'off' AS writable"));
        this.writable = rows[0].writable;
      } catch {
        this.writable = false; // the state is the metric; why is in the pooler's log
      }
      this.timer = setTimeout(ask, PROBE_MS);
    };
    ask();
  }

  async close() {
    clearTimeout(this.timer);
    await Promise.allSettled([this.pool.end(), this.probes.end()]);
  }
}

function stateAfter(error) {
  const answered = typeof error.code === 'string' && /^[0-9A-Z]{5}$/.test(error.code) && error.severity;
  if (!answered) return 'unknown';
  if (UNKNOWN.test(error.code)) return NEVER_SENT.test(error.message) ? 'refused' : 'unknown';
  return 'refused';
}

/** `promise`, or a rejection after `ms`. The pool's own time-outs end the work itself a little later. */
async function within(ms, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${ms} ms`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

module.exports = { Database, NotWritten };
