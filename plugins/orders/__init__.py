"""The orders: their table, the queries that export them, and the asset that exports update."""
