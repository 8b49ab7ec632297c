"""The whole project on one machine: embedded PostgreSQL, an S3 server, Airflow, and a table of orders."""
