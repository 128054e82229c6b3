"""Changes of a database's schema, in two phases, without clients that wait."""
