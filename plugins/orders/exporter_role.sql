-- The role that exports the orders and can do nothing else. Run it in the database of the orders, as somebody who
-- may create roles and owns the table (for another table than orders, python -m orders.exporter_role prints it):
--
--   psql --single-transaction -f exporter_role.sql shop
--   psql -c '\password orders_exporter' shop
--
-- Running it again is safe, and makes up for grants that are missing: after the table was made anew, for one. It is
-- plain SQL without psql's commands. Without a password nobody logs in, unless pg_hba.conf asks for none.
-- What PUBLIC may do, the role may as well, once it has left its read-only mode: make large objects, and temporary
-- tables unless REVOKE TEMPORARY ON DATABASE … FROM PUBLIC says otherwise. Where the table has row-level security, the
-- role exports the rows that a policy lets it see. Where a query compares a column of a type of yours with a parameter,
-- the role needs USAGE on the schema of that type.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'orders_exporter') THEN
        -- An export takes a connection for each reader (two by default) and one for the snapshot, and one more for a
        -- moment when it is stopped: 64 are for 16 exports at a time, which is what a Celery worker of Airflow's runs
        -- by default. For more: ALTER ROLE orders_exporter CONNECTION LIMIT …; with room in max_connections, too.
        CREATE ROLE orders_exporter LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION CONNECTION LIMIT 64;
    END IF;
END
$$;

-- What keeps the role from writing is that nobody has granted it; this also stops functions that run with the rights
-- of their owner.
ALTER ROLE orders_exporter SET default_transaction_read_only = on;

-- Add a line of the second kind for each further table that is exported.
GRANT USAGE ON SCHEMA public TO orders_exporter;
GRANT SELECT ON public.orders TO orders_exporter;

-- Only orders_export_daily needs this: to wait for the transactions of other roles, it has to see when they began. It
-- lets the role see other roles' statements in pg_stat_activity, too.
GRANT pg_read_all_stats TO orders_exporter;
