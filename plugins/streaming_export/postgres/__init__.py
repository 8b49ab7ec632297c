"""Query → CSV bytes, in order, from one snapshot; independent of S3."""
