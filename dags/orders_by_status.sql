-- The number of rows of one day by status, and their sum. The names come from plugins/orders/models.py.
SELECT {{ sql.status }}, count(*) AS orders{% if sql.amount %}, sum({{ sql.amount }}) AS {{ sql.amount }}{% endif %}

FROM {{ sql.table }}
WHERE {{ sql.created_at }} >= :created_from AND {{ sql.created_at }} < :created_to
GROUP BY {{ sql.status }}
