"""Which failures are worth a retry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import RetryDecision, RetryPolicy
from airflow.sdk.exceptions import AirflowNotFoundException

from streaming_export import ExportError

if TYPE_CHECKING:
    from airflow.sdk import Context


class RetryByCause(RetryPolicy):
    """Retries transient failures; all others fail at once, since somebody has to fix the cause first.

    The task decides how often and after how long: ``retries``, ``retry_delay``, ``retry_exponential_backoff``.
    """

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Decide by the exception; exceptions of other code are left to Airflow."""
        if isinstance(exception, AirflowNotFoundException):
            transient: bool | None = False
        else:
            transient = exception.transient if isinstance(exception, ExportError) else None
        if transient is None:
            return RetryDecision.default()
        if transient:
            return RetryDecision.retry(reason="The failure may be temporary.")
        return RetryDecision.fail(reason="A retry would fail again: fix the cause first.")

    def serialize(self) -> dict[str, Any]:
        """Nothing: it has no settings."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> RetryByCause:
        """The policy."""
        return cls()
