'use strict';

const { Client } = require('pg');

const TIMEOUT_MS = 400;

// The current timeline is in the name of the WAL file being written; on a replica, in its last restart point.
const QUESTION = `
  SELECT pg_is_in_recovery() AS in_recovery,
         CASE WHEN has_function_privilege('pg_control_system()', 'EXECUTE')
              THEN (SELECT system_identifier::text FROM pg_control_system()) END AS system_identifier,
         CASE WHEN NOT pg_is_in_recovery()
              THEN ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int
              WHEN has_function_privilege('pg_control_checkpoint()', 'EXECUTE')
              THEN (SELECT timeline_id FROM pg_control_checkpoint()) END AS timeline`;

/**
 * How one database node looks from this site, asked directly, not through the pooler.
 * reach: "answers"; "refused" (the host says that nothing listens); "silent" (anything else: it proves nothing).
 */
async function look(address, database) {
  const client = new Client({ ...database, ...address, connectionTimeoutMillis: TIMEOUT_MS, query_timeout: TIMEOUT_MS });
  client.on('error', () => {}); // a connection that breaks is reported by the promise below
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${TIMEOUT_MS} ms`)), TIMEOUT_MS);
  });
  const asked = client.connect().then(() => client.query(QUESTION));
  asked.catch(() => {}); // when `late` wins, the loser must not become an unhandled rejection
  try {
    const { rows } = await Promise.race([asked, late]);
    return { reach: 'answers', ...withoutNulls(rows[0]), detail: '' };
  } catch (error) {
    return { reach: reachOf(error), detail: error.message };
  } finally {
    clearTimeout(timer);
    client.connection.stream.destroy();
  }
}

function reachOf(error) {
  if (error.code === 'ECONNREFUSED') return 'refused';
  // Severity comes from the server's own error message ("starting up", "password authentication failed").
  return error.severity ? 'answers' : 'silent';
}

function withoutNulls(row) {
  return Object.fromEntries(Object.entries(row).filter(([, value]) => value !== null));
}

/** Every node of `nodes` (name -> {host, port}) at the same time. */
async function vantage(site, nodes, database) {
  const names = [...nodes.keys()];
  const views = await Promise.all(names.map((name) => look(nodes.get(name), database)));
  return {
    site,
    at: new Date().toISOString(),
    nodes: Object.fromEntries(names.map((name, i) => [name, views[i]])),
  };
}

module.exports = { vantage };
