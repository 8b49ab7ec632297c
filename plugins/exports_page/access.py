"""Permissions: who may see a DAG in Airflow may see its exports, and who may trigger it may download them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.models import Log
from airflow.models.dag import DagModel
from airflow.utils.session import create_session
from fastapi import HTTPException

_LONGEST = 250  # characters of an id in Airflow's database


class Access:
    """What one user may do, for one request; asks Airflow once per DAG.

    :param user: the user of the request's credential.
    """

    def __init__(self, user: BaseUser) -> None:
        self._user = user
        self._known: dict[tuple[str | None, str], bool] = {}

    def may_see(self, dag: str | None) -> bool:
        """Whether the user may see the runs of a DAG; None, for an export without a DAG: those of all DAGs."""
        return self._allowed(dag, "GET")

    def may_download(self, dag: str | None) -> bool:
        """Whether the user may trigger a DAG, and so download its exports; None: all DAGs."""
        return self._allowed(dag, "POST")

    def require(self, allowed: bool, event: str, dag: str | None, what: str) -> None:
        """Record a request in Airflow's event log, as granted or refused.

        :param event: name of the event in the log.
        :param what: what is requested.
        :raises HTTPException: 403, if it is not allowed.
        """
        name = self._user.get_name()
        extra = json.dumps({"what": what, "answer": "granted" if allowed else "refused"})
        with create_session() as session:
            session.add(
                Log(event=event, task_instance=None, dag_id=dag, owner=name, owner_display_name=name, extra=extra)
            )
        if not allowed:
            raise HTTPException(403, f"This needs permission to trigger {dag or 'all DAGs'}. Ask for that permission.")

    def _allowed(self, dag: str | None, method: Literal["GET", "POST"]) -> bool:
        if (dag, method) not in self._known:
            details = DagDetails(id=dag, team_name=DagModel.get_team_name(dag) if dag else None)
            self._known[dag, method] = get_auth_manager().is_authorized_dag(
                method=method, access_entity=DagAccessEntity.RUN, details=details, user=self._user
            )
        return self._known[dag, method]


def named(run: Mapping[str, Any], what: str) -> str | None:
    """The DAG, task or run that a manifest names; None if there is none, or Airflow could not have it."""
    name = run.get(what)
    return name if isinstance(name, str) and 0 < len(name) <= _LONGEST and name.isprintable() else None
