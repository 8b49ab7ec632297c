"""The orders: their table, the queries that export it, and the assets that the exports update."""
