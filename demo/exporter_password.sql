-- The password of orders_exporter, from the environment: the third file that the database of docker-compose.yml runs
-- when its volume is empty. For psql.
\getenv password ORDERS_EXPORTER_PASSWORD
ALTER ROLE orders_exporter PASSWORD :'password';
