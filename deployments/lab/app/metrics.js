'use strict';

const BUCKETS_S = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5];

/** Counts requests and renders the Prometheus text format, version 0.0.4. */
class Metrics {
  constructor(site, name) {
    this.labels = `site="${site}",app="${name}"`;
    this.series = new Map(); // 'method,route,status' labels -> {count, sum, buckets}
    this.inFlight = 0;
    this.errors = 0;
  }

  observe(method, route, status, seconds) {
    const key = `${this.labels},method="${method}",route="${route}",status="${status}"`;
    let one = this.series.get(key);
    if (!one) {
      one = { count: 0, sum: 0, buckets: new Array(BUCKETS_S.length).fill(0) };
      this.series.set(key, one);
    }
    one.count += 1;
    one.sum += seconds;
    BUCKETS_S.forEach((most, i) => { if (seconds <= most) one.buckets[i] += 1; });
    if (status >= 500) this.errors += 1;
  }

  /** `connections`: open client connections (concurrent users, as far as a server can tell). */
  render(database, connections) {
    const cpu = process.cpuUsage();
    const pool = database.pool;
    const lines = [];
    const add = (name, kind, help, samples) => {
      lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${kind}`);
      for (const [labels, value, suffix] of samples) lines.push(`${name}${suffix || ''}{${labels}} ${value}`);
    };
    const one = (name, kind, help, value) => add(name, kind, help, [[this.labels, value]]);

    add('http_requests_total', 'counter', 'Requests answered.', [...this.series].map(([k, s]) => [k, s.count]));
    add('http_request_duration_seconds', 'histogram', 'Time from request to answer.',
      [...this.series].flatMap(([k, s]) => [
        ...BUCKETS_S.map((most, i) => [`${k},le="${most}"`, s.buckets[i], '_bucket']),
        [`${k},le="+Inf"`, s.count, '_bucket'],
        [k, s.sum, '_sum'],
        [k, s.count, '_count'],
      ]));
    one('http_request_errors_total', 'counter', 'Requests answered with 5xx.', this.errors);
    one('http_requests_in_flight', 'gauge', 'Requests being worked on.', this.inFlight);
    one('http_connections', 'gauge', 'Open client connections.', connections);
    add('venue_pg_pool_connections', 'gauge', 'Connections of the database pool by state.', [
      [`${this.labels},state="total"`, pool.totalCount],
      [`${this.labels},state="idle"`, pool.idleCount],
      [`${this.labels},state="waiting"`, pool.waitingCount],
      [`${this.labels},state="max"`, pool.options.max],
    ]);
    one('venue_pg_connection_errors_total', 'counter', 'Database connections that broke while not in use.', database.errors);
    one('venue_database_writable', 'gauge', 'The database behind the pool takes writes.', database.writable ? 1 : 0);
    one('process_cpu_seconds_total', 'counter', 'User and system CPU time.', (cpu.user + cpu.system) / 1e6);
    one('process_resident_memory_bytes', 'gauge', 'Resident memory.', process.memoryUsage.rss());
    one('process_start_time_seconds', 'gauge', 'Start time, Unix.', (Date.now() / 1000 - process.uptime()).toFixed(3));
    return `${lines.join('\n')}\n`;
  }
}

module.exports = { Metrics };
