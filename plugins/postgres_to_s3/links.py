"""What the operator links to in Airflow's UI."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

if TYPE_CHECKING:
    from airflow.models.taskinstancekey import TaskInstanceKey
    from airflow.sdk import BaseOperator


class ExportLink(BaseOperatorLink):
    """The export's entry on the page "Exports". The link contains no credentials and does not expire."""

    name = "Export"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The link; empty until the export is published."""
        summary = XCom.get_value(ti_key=ti_key, key="return_value")
        return str(summary["link"]) if summary else ""
