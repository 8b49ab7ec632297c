"""Watches the requests of a boto3 client, and answers some of them in the object store's place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from botocore.awsrequest import AWSResponse

#: What a hook answers in the store's place; None lets the request through.
Answer = tuple[AWSResponse, dict[str, Any]] | None


def answer(status: int = 200, **parsed: Any) -> Answer:
    """An answer of the store, as boto3 would have parsed it."""
    whole = {"ResponseMetadata": {"HTTPStatusCode": status}, **parsed}
    return AWSResponse("http://store.invalid", status, {}, None), whole


def refusal(code: str, status: int = 403) -> Answer:
    """An error that the store answers; boto3 raises it as ClientError, and does not retry it."""
    return answer(status, Error={"Code": code, "Message": "injected by a test"})


def hook(client: Any, operation: str, reply: Callable[[dict[str, Any]], Answer]) -> None:
    """Have `reply` see each request of an operation, in the thread that sends it, and answer or delay it."""

    def before_call(params: dict[str, Any], **_: Any) -> Answer:
        return reply(params)

    client.meta.events.register(f"before-call.s3.{operation}", before_call)


def record(client: Any) -> list[tuple[str, dict[str, Any]]]:
    """A list that fills with the operations that the client is asked for, and their arguments."""
    requests: list[tuple[str, dict[str, Any]]] = []

    def provide(params: dict[str, Any], model: Any, **_: Any) -> None:
        requests.append((model.name, dict(params)))

    client.meta.events.register("provide-client-params.s3", provide)
    return requests


def part_number(params: dict[str, Any]) -> int:
    """The number of the part that a request of UploadPart carries."""
    return int(params["query_string"]["partNumber"])


def part_sizes(client: Any) -> dict[int, int]:
    """A dictionary that fills with the sizes of the parts that the client sends, by their numbers.

    They are taken as the parts are sent: the export uses their buffers again, so `record` may show those of others.
    """
    sizes: dict[int, int] = {}
    hook(client, "UploadPart", lambda params: sizes.update({part_number(params): len(params["body"])}))
    return sizes
