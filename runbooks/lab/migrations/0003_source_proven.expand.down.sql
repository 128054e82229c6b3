-- As before it was looked at: for new rows only.
ALTER TABLE events DROP CONSTRAINT source_known;
ALTER TABLE events ADD CONSTRAINT source_known CHECK (source IS NOT NULL) NOT VALID;
