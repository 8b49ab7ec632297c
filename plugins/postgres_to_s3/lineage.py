"""What an export read and wrote, for OpenLineage; imported only if its provider is installed."""

from __future__ import annotations

from airflow.providers.common.compat.openlineage.facet import OutputDataset, OutputStatisticsOutputDatasetFacet
from airflow.providers.openlineage.extractors import OperatorLineage
from airflow.providers.openlineage.sqlparser import SQLParser
from airflow.providers.postgres.hooks.postgres import PostgresHook

from streaming_export import ExportResult


def lineage(hook: PostgresHook, sql: str, result: ExportResult) -> OperatorLineage:
    """The tables that the query reads, with their columns, and the files, with rows and bytes.

    :param sql: without the values of its parameters.
    """
    parser = SQLParser(dialect="postgres", default_schema=hook.get_openlineage_default_schema())
    database = hook.get_openlineage_database_info(hook.get_connection(hook.get_conn_id()))
    read = parser.generate_openlineage_metadata_from_sql(
        sql=sql, hook=hook, database_info=database, use_connection=True
    )
    written = [
        OutputDataset(
            namespace=f"s3://{result.bucket}",
            name=file.key,
            outputFacets={"outputStatistics": OutputStatisticsOutputDatasetFacet(rowCount=file.rows, size=file.bytes)},
        )
        for file in result.files
    ]
    return OperatorLineage(inputs=read.inputs, outputs=written, job_facets=read.job_facets, run_facets=read.run_facets)
