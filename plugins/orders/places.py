"""Where the exports of the orders are, as templates for DAGs."""

from orders.models import TABLE

BUCKET = "{{ var.value.get('orders_export_bucket', 'exports') }}"
PREFIX = "{{ var.value.get('orders_export_prefix', '" + TABLE.name + "') }}"

# A run triggered without a logical date has no data interval.
_TODAY = "{{ (dag_run.data_interval_end or dag_run.run_after) | ds_nodash }}"

#: The nightly file of all orders.
NIGHTLY_KEY = f"{PREFIX}/{TABLE.name}-{_TODAY}.csv"

#: The prefix of the keys of all nightly files, and of no others.
NIGHTLY_PREFIX = f"{PREFIX}/{TABLE.name}-"

_SUFFIX = "{{ '-' ~ params.suffix if params.suffix }}"

#: The file of a selection, chosen in the trigger form. It has a folder of its own, so that it replaces no nightly file.
SELECTION_KEY = PREFIX + "/manual/{{ run_id }}/" + TABLE.name + "-" + _TODAY + _SUFFIX + ".csv"

#: The file of the orders of one day; needs the macro `day_of`.
_DAY = "{{ day_of(dag_run).start | ds_nodash }}"
DAILY_KEY = PREFIX + "/daily/dt={{ day_of(dag_run).start | ds }}/" + f"{TABLE.name}-{_DAY}.csv"

#: The prefix of the keys of all daily files, and of no others.
DAILY_PREFIX = f"{PREFIX}/daily/"

#: Totals of one day; needs the macro `day_of`.
BY_STATUS_KEY = f"{PREFIX}/by-status/{TABLE.name}-by-status-{_DAY}.csv"

#: Names the newest nightly export. Only scheduled runs and backfills update it, not runs triggered by hand.
LATEST_KEY = "{% if dag_run.run_type in ('scheduled', 'backfill') %}" + PREFIX + "/latest.json{% endif %}"
