"""The host name of a program of Airflow in `make scale`, where all machines are one."""

import os


def host_name() -> str:
    """For Airflow's setting `hostname_callable`."""
    return os.environ["SCALE_HOST"]
