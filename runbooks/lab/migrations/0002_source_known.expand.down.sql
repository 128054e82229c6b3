ALTER TABLE events DROP CONSTRAINT source_known;
