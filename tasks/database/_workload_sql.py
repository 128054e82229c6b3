"""The queries behind ``tasks.database._reviewing``. Views of PostgreSQL 13 to 18 (manual, 28.2, F.32)."""

SERVER = """
SELECT now() AS at, current_setting('server_version') AS version,
       d.stats_reset AS since, d.blks_hit::float8 AS hit, d.blks_read::float8 AS read,
       pg_size_bytes(current_setting('shared_buffers')) AS cache_bytes,
       pg_database_size(current_database()) AS database_bytes,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND state = 'idle') AS idle,
       current_setting('max_connections')::int AS max_connections
FROM pg_stat_database d WHERE d.datname = current_database()
"""

STATEMENTS = """
SELECT s.queryid::text AS id, s.query AS text, sum(s.calls)::bigint AS calls,
       sum(s.total_exec_time) / 1000 AS total_s, sum(s.total_exec_time) / 1000 / sum(s.calls) AS mean_s,
       max(s.max_exec_time) / 1000 AS worst_s, sum(s.rows)::bigint AS rows,
       sum(s.shared_blks_hit)::bigint AS hit, sum(s.shared_blks_read)::bigint AS read,
       sum(s.temp_blks_read + s.temp_blks_written)::bigint AS temp,
       coalesce(100 * sum(s.total_exec_time) / nullif(sum(sum(s.total_exec_time)) OVER (), 0), 0) AS share
FROM pg_stat_statements s
WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND s.calls > 0
  AND s.query ~* '^\\s*(select|insert|update|delete|with|merge)\\M' AND s.query !~* '\\m(pg_stat_|pg_catalog)'
GROUP BY s.queryid, s.query ORDER BY sum(s.total_exec_time) DESC LIMIT 25
"""

STATEMENTS_SINCE = "SELECT stats_reset AS since FROM pg_stat_statements_info"

TABLES = """
SELECT format('%I.%I', s.schemaname, s.relname) AS "table", greatest(c.reltuples, s.n_live_tup)::bigint AS rows,
       pg_total_relation_size(c.oid) AS bytes, coalesce(s.seq_scan, 0) AS scans,
       coalesce(s.seq_tup_read, 0) AS scanned_rows, coalesce(s.idx_scan, 0) AS index_scans,
       s.n_dead_tup AS dead, s.n_mod_since_analyze AS changed,
       coalesce(o.vt::float8, current_setting('autovacuum_vacuum_threshold')::float8)
         + coalesce(o.vs::float8, current_setting('autovacuum_vacuum_scale_factor')::float8)
         * greatest(c.reltuples, 0) AS vacuum_at,
       coalesce(o.at::float8, current_setting('autovacuum_analyze_threshold')::float8)
         + coalesce(o.a_s::float8, current_setting('autovacuum_analyze_scale_factor')::float8)
         * greatest(c.reltuples, 0) AS analyze_at,
       greatest(s.last_vacuum, s.last_autovacuum) AS vacuumed_at,
       greatest(s.last_analyze, s.last_autoanalyze) AS analyzed_at,
       age(c.relfrozenxid) AS frozen_age, pg_has_role(c.relowner, 'USAGE') AS ours
FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
LEFT JOIN LATERAL (
    SELECT max(option_value) FILTER (WHERE option_name = 'autovacuum_vacuum_threshold') AS vt,
           max(option_value) FILTER (WHERE option_name = 'autovacuum_vacuum_scale_factor') AS vs,
           max(option_value) FILTER (WHERE option_name = 'autovacuum_analyze_threshold') AS at,
           max(option_value) FILTER (WHERE option_name = 'autovacuum_analyze_scale_factor') AS a_s
    FROM pg_options_to_table(c.reloptions)) o ON true
WHERE c.relkind = 'r' AND c.relpersistence = 'p' ORDER BY bytes DESC
"""

INDEXES = """
SELECT format('%I.%I', s.schemaname, s.indexrelname) AS "index", format('%I.%I', s.schemaname, s.relname) AS "table",
       pg_relation_size(s.indexrelid) AS bytes, s.idx_scan AS scans,
       i.indisprimary OR i.indisunique OR i.indisexclusion OR i.indisreplident
         OR EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid) AS wanted,
       i.indisvalid AS valid, pg_get_indexdef(i.indexrelid) AS definition,
       concat_ws(' ', a.amname, i.indrelid, i.indkey, i.indclass, i.indcollation, i.indoption,
                 pg_get_expr(i.indexprs, i.indrelid), pg_get_expr(i.indpred, i.indrelid)) AS key
FROM pg_stat_user_indexes s JOIN pg_index i ON i.indexrelid = s.indexrelid
JOIN pg_class c ON c.oid = s.indexrelid JOIN pg_am a ON a.oid = c.relam
ORDER BY bytes DESC
"""

WASTED = """
SELECT greatest(0, 100 - avg_leaf_density)::float8 AS wasted FROM pgstatindex(%s::regclass)
WHERE avg_leaf_density <> 'NaN'
"""
