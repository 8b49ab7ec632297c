-- Orders and revenue of one day, by status.
SELECT status, count(*) AS orders, sum(total_cents) AS total_cents
FROM orders
WHERE created_at >= :created_from AND created_at < :created_to
GROUP BY status
