"""The programs that are measured: each runs one contender once, in a process of its own.

    python -m benchmarks.runners.NAME JOB.json RESULT.json

JOB.json says what to do, RESULT.json gets a `Usage`. Everything that is not the contender's own (the
imports, the look-up of connections) is done before the measuring begins.
"""
