-- Sets the password of orders_exporter from the environment: the third script that the database of docker-compose.yml
-- runs if its volume is empty. For psql.
\getenv password ORDERS_EXPORTER_PASSWORD
ALTER ROLE orders_exporter PASSWORD :'password';
