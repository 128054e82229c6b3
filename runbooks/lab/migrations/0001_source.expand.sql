-- Where a booking came from. A constant default is only noted in the catalog: no row is written, and a release that
-- knows nothing of the column still inserts.
ALTER TABLE events ADD COLUMN source text DEFAULT 'web';
