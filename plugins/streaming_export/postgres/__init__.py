"""Query → CSV bytes, in order."""
