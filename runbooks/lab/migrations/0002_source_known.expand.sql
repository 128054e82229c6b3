-- Counts for new rows at once, and holds its lock for a moment; the old rows are checked by the next file.
ALTER TABLE events ADD CONSTRAINT source_known CHECK (source IS NOT NULL) NOT VALID;
