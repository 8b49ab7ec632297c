"""One table over several workers: one task holds a snapshot, others export its pieces, one publishes them all.

Each piece reads the holder's plan by itself, and ends only after the holder has seen all pieces
complete on its snapshot; until then it gives its slot back. So if the holder is lost and retried, with a new
snapshot and a new plan, each piece is exported again, even if it was complete, and nothing of the old plan is in
the manifest.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import Asset, TaskGroup
from airflow.sdk.exceptions import AirflowFailException, AirflowRescheduleException

from postgres_to_s3.connections import s3_bucket
from postgres_to_s3.operator import PostgresToS3Operator
from postgres_to_s3.retries import RetryByCause
from streaming_export import Bucket, Export, ExportResult, InvalidArgument, SnapshotGone, pieces
from streaming_export.cancellation import Cancellation
from streaming_export.options import check_whole_number
from streaming_export.pieces import MAX_PIECES, Holder, Plan

if TYPE_CHECKING:
    from airflow.sdk import Context, RetryPolicy

# Airflow takes a mapped task's policy from the default in the signature.
_RETRY_BY_CAUSE = RetryByCause()

PLAN = "plan"  # key of the plan's XCom

_LOOK_SECONDS = 2.0  # between two checks of the pieces by the holder, or of the plan by a piece
_PLAN_SECONDS = 20.0  # how long a piece waits for a plan before it gives its slot back
_AGAIN_SECONDS = 15.0  # after which Airflow runs it again
# Airflow starts pieces in their order: the checks of complete ones must not take all slots from those behind them.
_EACH_SECONDS = 5.0  # for each complete piece, between two checks of one
_ENDED_BADLY = {"failed", "upstream_failed", "skipped", "removed"}


def export_over_workers(
    group_id: str,
    *,
    workers: int,
    latest_key: str | None = None,
    outlets: Sequence[Asset] = (),
    start_timeout: int = 300,
    **export: Any,
) -> TaskGroup:
    """A task group that exports one query in pieces, on all available workers, as one export.

    All pieces are read on one snapshot. Their rows are compared with the database's own count before there are a
    manifest, `latest_key` and events of the outlets. If the task that holds the snapshot is lost, the group starts
    again by itself, as often as the ``retries`` allow.

    Meant for a query that takes one worker half an hour or more. The holder takes a slot of its own while the
    export runs, and its snapshot keeps VACUUM from removing dead rows, in the whole database.

    :param group_id: id of the group.
    :param workers: number of pieces, with about the same number of rows.
    :param latest_key: as that of `PostgresToS3Operator`.
    :param outlets: assets that the export updates.
    :param start_timeout: seconds after which the holder gives up if no piece has started, for lack of slots.
    :param export: arguments of `PostgresToS3Operator`; ``unique_key`` is required, and must be a number, a UUID, a date
        or a timestamp. ``preview``, ``on_empty`` and ``overwrite`` are not available.
    :raises InvalidArgument: if an argument is not allowed.
    """
    check_whole_number("workers", workers, 1, MAX_PIECES)
    if not export.get("unique_key"):
        raise InvalidArgument("unique_key", export.get("unique_key"), "the name of a column: pieces are ranges of it")
    for name in ("preview", "on_empty", "overwrite"):
        if name in export:
            raise InvalidArgument(name, export[name], "not available for pieces: leave it out")
    of_pieces = {name: value for name, value in export.items() if name not in ("wait_for_transactions", "window")}
    with TaskGroup(group_id) as group:
        hold = HoldSnapshot(
            task_id="hold_snapshot",
            workers=workers,
            pieces_id=group.child_id("export_piece"),
            start_timeout=start_timeout,
            priority_weight=workers + 1,
            **export,
        )
        ExportPiece.partial(task_id="export_piece", holder_id=hold.task_id, **of_pieces).expand(
            piece=list(range(workers))
        )
        publish = PublishPieces(
            task_id="publish", holder_id=hold.task_id, latest_key=latest_key, outlets=outlets, **export
        )
        hold >> publish
    return group


class HoldSnapshot(PostgresToS3Operator):
    """Takes the snapshot, plans the pieces, and holds the snapshot until all of them are complete."""

    def __init__(self, *, workers: int, pieces_id: str, start_timeout: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.workers = workers
        self.pieces_id = pieces_id
        self.start_timeout = start_timeout

    def execute(self, context: Context) -> dict[str, Any]:
        """Hold the snapshot; the plan is an XCom while it does.

        :raises streaming_export.ExportError: if the database or the store fails; its lines are in the log before.
        :raises AirflowFailException: if a piece failed for good, or none has started.
        """
        ti = context["ti"]
        with self._reporting(ti, "Nothing was published."):
            self._check(rendered=True)
            bucket = s3_bucket(self.aws_conn_id, str(self.s3_bucket), self.extra_args)
            holder = Holder(self.query, self.parameters, pieces=self.workers, **self._arguments(bucket, ti))
            self._running = holder
            with holder:
                ti.xcom_push(PLAN, asdict(holder.plan))
                self._wait_for_pieces(ti, holder, bucket)
                return {"rows": holder.plan.rows, "pieces": len(holder.plan.ranges), "link": ""}

    def _wait_for_pieces(self, ti: Any, holder: Holder, bucket: Bucket) -> None:
        """Return when all pieces are complete, and were complete while the snapshot was held."""
        begun, deadline, wanted = False, time.monotonic() + self.start_timeout, set(range(len(holder.plan.ranges)))
        while True:
            complete = pieces.reported(bucket, holder.plan)
            holder.check()  # afterwards: so the snapshot was held until then
            if complete == wanted:
                self.log.info("All %d pieces are complete.", len(wanted))
                return
            states = _states(ti, self.pieces_id)
            # Somebody has marked it, or has not cleared it with the rest of the group: it will not run again.
            over = any(states.get(f"{self.pieces_id}_{number}") == "success" for number in wanted - complete)
            early = ["success, but not on this snapshot"] if over else []
            if bad := sorted(_ENDED_BADLY.intersection(states.values())) or early:
                raise AirflowFailException(
                    f"A piece is {bad[0]}, so the export can't be complete.\nNothing was published; what was published"
                    " before stays.\nSee the log of that piece, and clear the whole group."
                )
            begun = begun or bool(complete) or "running" in states.values()
            if not begun and time.monotonic() > deadline:
                raise AirflowFailException(
                    f"No piece has started within {self.start_timeout} s: the pieces need slots besides this task's."
                    "\nNothing was published.\nAdd workers or slots (also of the pool), and clear the whole group."
                )
            time.sleep(_LOOK_SECONDS)


class ExportPiece(PostgresToS3Operator):
    """Exports one piece of the holder's plan, and ends after the holder has seen all pieces complete."""

    def __init__(
        self, *, piece: int, holder_id: str, retry_policy: RetryPolicy | None = _RETRY_BY_CAUSE, **kwargs: Any
    ) -> None:
        super().__init__(retry_policy=retry_policy, **kwargs)
        self.piece = piece
        self.holder_id = holder_id
        self._plan: Plan | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Export the piece, unless it is complete already.

        :raises AirflowRescheduleException: to run again later, if there is no plan or other pieces are not complete.
        :raises AirflowFailException: if the holder failed for good, or ended without this piece.
        """
        ti = context["ti"]
        plan = self._plan = self._wait_for_plan(ti)
        ended = self._holder(ti) == "success"  # before the next look: it ends after all pieces are complete
        there = self.piece < len(plan.ranges)
        with self._reporting(ti, "Nothing was published."):
            complete = pieces.reported(s3_bucket(self.aws_conn_id, str(self.s3_bucket), self.extra_args), plan)
        if there and self.piece not in complete:
            if ended:
                self._give_up("has ended without this piece")
            super().execute(context)
        if self._holder(ti) != "success":
            self._come_again(ti, "Other pieces are not complete yet", len(complete) * _EACH_SECONDS)
        return {"key": plan.piece_key(self.piece) if there else None, "link": ""}

    def _export(self, bucket: Bucket, ti: Any) -> Any:
        assert self._plan is not None
        of_piece = {
            "key": self._plan.piece_key(self.piece),
            "snapshot": self._plan.snapshot,
            "key_range": self._plan.ranges[self.piece],
            "whole": self._plan.document,
            "options": pieces.of_piece(dataclasses.replace(self.options, **self._templated())),
            "application_name": f"airflow {ti.dag_id}.{ti.task_id}[{self.piece}] {ti.run_id}",
        }
        export = Export(self.query, self.parameters, **self._arguments(bucket, ti) | of_piece)
        return _Reported(export, self, ti, bucket)

    def _wait_for_plan(self, ti: Any) -> Plan:
        deadline = time.monotonic() + _PLAN_SECONDS
        while True:
            holder = self._holder(ti)
            if shared := ti.xcom_pull(task_ids=self.holder_id, key=PLAN, map_indexes=-1):
                return Plan.parse(shared)
            if holder == "success":
                self._give_up("has ended without a snapshot")
            if time.monotonic() > deadline or holder in _ENDED_BADLY:
                self._come_again(ti, "The snapshot is not there yet")
            time.sleep(_LOOK_SECONDS)

    def _holder(self, ti: Any) -> str:
        """The state of the holder; empty if it has none."""
        return next(iter(_states(ti, self.holder_id).values()), "")

    def _give_up(self, why: str) -> NoReturn:
        raise AirflowFailException(
            f"{self.holder_id} {why}.\nNothing was published; what was published before stays.\nSee the log of that"
            " task, and clear the whole group."
        )

    def _come_again(self, ti: Any, why: str, seconds: float = 0.0) -> None:
        if (holder := self._holder(ti)) in _ENDED_BADLY:
            self._give_up(f"is {holder}, so this piece can't be used")
        seconds = max(seconds, _AGAIN_SECONDS)
        self.log.info("%s: giving the slot back, and trying again in %.0f s.", why, seconds)
        raise AirflowRescheduleException(datetime.now(UTC) + timedelta(seconds=seconds))


class PublishPieces(PostgresToS3Operator):
    """Publishes the pieces: one manifest, the document at `latest_key`, and the events of the assets."""

    def __init__(self, *, holder_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.holder_id = holder_id

    def _export(self, bucket: Bucket, ti: Any) -> Any:
        plan = Plan.parse(ti.xcom_pull(task_ids=self.holder_id, key=PLAN, map_indexes=-1))
        return _Published(bucket, plan)


class _Reported:
    """The export of a piece; reports its end, and runs again later if the snapshot is gone."""

    def __init__(self, export: Export, task: ExportPiece, ti: Any, bucket: Bucket) -> None:
        self._export, self._task, self._ti, self._bucket = export, task, ti, bucket
        self.cancel = export.cancel

    def run(self) -> ExportResult:
        assert self._task._plan is not None
        try:
            result = self._export.run()
        except SnapshotGone as exc:
            self._task.log.warning("%s The whole group starts again as soon as its holder does.", exc.failed)
            self._task._come_again(self._ti, "The snapshot is gone")
        pieces.report(self._bucket, self._task._plan, self._task.piece, result.files)
        return result


class _Published:
    """What `PublishPieces` runs instead of an export."""

    def __init__(self, bucket: Bucket, plan: Plan) -> None:
        self._cancellation = Cancellation()
        self._bucket, self._plan = bucket.within(self._cancellation.stop), plan
        self.cancel = self._cancellation.cancel

    def run(self) -> ExportResult:
        return self._cancellation.run(lambda: pieces.publish(self._bucket, self._plan))


def _states(ti: Any, task_id: str) -> dict[str, str]:
    """The states of all instances of a task in this run, by its id; for a mapped one, the id, `_` and the index."""
    found = ti.get_task_states(dag_id=ti.dag_id, task_ids=[task_id], run_ids=[ti.run_id])
    return {name: str(state) for of_run in found.values() for name, state in of_run.items() if state}
