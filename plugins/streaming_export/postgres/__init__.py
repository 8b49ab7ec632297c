"""Query → CSV bytes, in order, from one snapshot. Knows nothing of S3."""
