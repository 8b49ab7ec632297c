-- The role that exports the orders and can do nothing else. Run this in the orders database, as a role that
-- may create roles and owns the table (for a table other than orders, python -m orders.exporter_role prints it):
--
--   psql --single-transaction -f exporter_role.sql shop
--   psql -c '\password orders_exporter' shop
--
-- Running it again is safe, and adds missing grants, for instance after the table was created again. It is
-- plain SQL without psql's commands. Without a password nobody logs in, unless pg_hba.conf asks for none.
-- If it leaves its read-only mode, the role may do what PUBLIC may do: create large objects, and temporary
-- tables unless REVOKE TEMPORARY ON DATABASE … FROM PUBLIC says otherwise. Where the table has row-level security, the
-- role exports the rows that a policy lets it see. Where a query compares a column of a type of yours with a parameter,
-- the role needs USAGE on the schema of that type.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'orders_exporter') THEN
        -- An export takes a connection for each reader (by default two, or three if the database is far away), one for
        -- the snapshot, and one more briefly when it is stopped: 80 are enough for 16 exports at a time, which is what
        -- an Airflow Celery worker runs by default. For more: ALTER ROLE orders_exporter CONNECTION LIMIT …; check
        -- max_connections, too.
        CREATE ROLE orders_exporter LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION CONNECTION LIMIT 80;
    END IF;
END
$$;

-- The role has no privilege to write. This also stops functions that run with the privileges
-- of their owners.
ALTER ROLE orders_exporter SET default_transaction_read_only = on;

-- For each further table that is exported, add a line like the second.
GRANT USAGE ON SCHEMA public TO orders_exporter;
GRANT SELECT ON public.orders TO orders_exporter;

-- Only orders_export_daily needs this: to wait for the transactions of other roles, it must see when they began. It
-- lets the role see other roles' statements in pg_stat_activity, too.
GRANT pg_read_all_stats TO orders_exporter;
