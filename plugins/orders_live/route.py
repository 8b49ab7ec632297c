"""The route `orders.csv`; docs/page.md describes it."""

from __future__ import annotations

from fastapi import Depends
from fastapi.responses import JSONResponse, Response
from starlette.requests import Request

from exports_page.access import Access
from exports_page.api import User, app, refused, same_site, threaded
from exports_page.download import Download, Slots, too_many
from orders.models import STATUSES
from orders.runs import FieldRefused
from orders_live.reading import LiveOrders, checked

#: Users who may trigger this DAG may download the table.
DAG = "orders_export"

#: Concurrent downloads that one process allows.
slots = Slots(2)

app.state.live = {"dag": DAG, "statuses": STATUSES}


@app.exception_handler(FieldRefused)
async def refuse(_: Request, exc: FieldRefused) -> Response:
    """The answer to a parameter that is not allowed, in the format of FastAPI."""
    return JSONResponse({"detail": [{"type": "value_error", "loc": ["query", exc.field], "msg": exc.cause}]}, 422)


@app.api_route("/orders.csv", methods=["GET", "HEAD"], dependencies=[Depends(same_site)])
async def orders_csv(request: Request, user: User) -> Response:
    """The orders table as it is now."""

    def prepare() -> Response:
        access = Access(user)
        given = [(name, value) for name, value in request.query_params.multi_items() if name != "dag_id"]
        allowed = access.may_download(DAG)
        parameters = checked(given) if allowed else {}
        if allowed and request.method == "HEAD":
            return Response() if slots.free else too_many(slots)
        asked = " ".join(f"{name}={value}" for name, value in given) if allowed else ""
        access.require(allowed, "orders.csv", DAG, f"orders.csv {asked}".strip())
        gzip = "gzip" in request.headers.get("Accept-Encoding", "")
        return Download(LiveOrders(parameters, gzip), slots, "orders.csv", refused)

    return await threaded(prepare)
