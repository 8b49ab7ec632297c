"""The store's codes → errors: transient or not, and what to do.

The codes are those of the Amazon S3 API Reference, "Error responses"; for requests without an answer, they are the
names of botocore's exceptions.
"""

from __future__ import annotations

import re

from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from streaming_export.errors import StoreError

#: There is no such object. (The answer to HEAD has no body, and so only the number.)
GONE = ("NoSuchKey", "404")

#: A condition of the request did not hold.
REFUSED = ("PreconditionFailed", "ConditionalRequestConflict", "412")

#: The store does not know what the request asks for.
UNSUPPORTED = ("NotImplemented", "501")

_GRANT = (
    "Grant the role of the connection s3:PutObject, s3:GetObject and s3:AbortMultipartUpload on the key, s3:ListBucket"
    " on the bucket, and kms:GenerateDataKey and kms:Decrypt if it is encrypted by KMS."
)
_CREDENTIALS = "Correct the credentials of the connection."
_REMEDIES = {
    "NoSuchBucket": "Create the bucket, or correct its name.",
    "AccessDenied": _GRANT,
    "403": _GRANT,
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "NoCredentialsError": _CREDENTIALS,
    "ExpiredToken": "Retry. If it happens again, use credentials that are valid for longer than an export takes.",
    "NoSuchUpload": "Check whether two runs write to this key, or a lifecycle rule ends uploads early; export again.",
    "EntityTooLarge": "Export fewer rows or columns, or split the file by max_file_bytes.",
    "SlowDown": "The store is busy: retry, or run fewer exports at a time.",
    "EndpointConnectionError": "Check that the store is up and the connection's endpoint is right, then retry.",
}
_READING_REMEDIES = {
    "AccessDenied": f"{_GRANT} Without s3:ListBucket, S3 also answers this if there is no object.",
    "InvalidRequest": (
        "The object may be encrypted with another key than the one in extra_args: remove it, or export to another key."
    ),
}
_TRANSIENT_REMEDY = "It may be temporary: retry."
_REMEDY = "Fix the cause, then export again."

#: Codes of transient failures. After ExpiredToken, the next try gets a new token; BadDigest means that the data was
#: damaged on its way.
TRANSIENT = {
    *("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "429"),
    *("InternalError", "ServiceUnavailable", "OperationAborted", "ConditionalRequestConflict", "RequestTimeout"),
    *("BadDigest", "ExpiredToken", "500", "502", "503", "504"),
    *("IncompleteReadError", "ConnectTimeoutError", "ReadTimeoutError", "EndpointConnectionError"),
    *("ConnectionClosedError", "ConnectionError", "HTTPClientError", "ResponseStreamingError", "SSLError"),
    *("ProxyConnectionError", "CredentialRetrievalError", "MetadataRetrievalError"),
}
_TRANSIENT_STATUSES = {429, 500, 502, 503, 504}

# A gateway in front of the store answers these while the store may still be working.
_GATEWAY_STATUSES = {502, 504}

# The login in a URL; botocore's messages quote the endpoint's.
_LOGIN = re.compile(r"(?<=://)[^/\s]*@")


def store_error(doing: str, exc: ClientError | BotoCoreError | HTTPError) -> StoreError:
    """Translate an error of botocore, or of urllib3 while a body is read.

    :param doing: what was being done, and to what, as in "completing s3://…".
    """
    code, status, message = type(exc).__name__, None, str(exc)
    if isinstance(exc, ClientError):
        error = exc.response.get("Error", {})
        code, message = str(error.get("Code", "unknown")), str(error.get("Message", ""))
        status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    transient = code in TRANSIENT or status in _TRANSIENT_STATUSES or isinstance(exc, HTTPError)
    remedy = _REMEDIES.get(code, _TRANSIENT_REMEDY if transient else _REMEDY)
    if doing.startswith("reading"):
        remedy = _READING_REMEDIES.get(code, remedy)
    message = _LOGIN.sub("***@", message)
    reason = f"{code}: {message}" if message else code
    # The store's message may end in a full stop. The cause comes before a long key.
    failed = f"The object store failed: {reason.rstrip('. ')}, while {doing}."
    return StoreError(failed, remedy, code=code, transient=transient)


def is_answer(exc: BaseException) -> bool:
    """Whether the store itself has answered, so that no request is still on its way."""
    if not isinstance(exc, ClientError):
        return False
    metadata = exc.response.get("ResponseMetadata", {})
    return not metadata.get("RetryAttempts") and metadata.get("HTTPStatusCode") not in _GATEWAY_STATUSES
