-- What the application needs of its database. Run in database "venue" as its owner; safe to repeat.
-- There is deliberately no unique key: a write that was doubled must be countable, not rejected.
CREATE TABLE IF NOT EXISTS events (
    n        bigint      NOT NULL,
    client   text        NOT NULL,
    payload  jsonb,
    at       timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS events_client_n ON events (client, n);
GRANT SELECT, INSERT ON events TO app;
-- Lets /vantage say which cluster it saw; a node of another cluster must not pass for ours.
GRANT EXECUTE ON FUNCTION pg_control_system(), pg_control_checkpoint() TO app;
