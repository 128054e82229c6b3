-- Reads the whole table under a lock that lets everybody read and write.
ALTER TABLE events VALIDATE CONSTRAINT source_known;
