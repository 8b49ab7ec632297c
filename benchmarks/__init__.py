"""This project's export and its peers, measured in turn; see `python -m benchmarks --help`."""
