"""What storage.py raises: one family of errors, each naming the URI and the cause, and never a secret."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from fruitcnn.errors import UsageError


class StorageError(OSError):
    """Something about `uri` failed because of `cause` (one line that ends in the next step where one is known)."""

    def __init__(self, uri: str, cause: str) -> None:
        self.uri = uri
        self.cause = cause
        # A local name need not be UTF-8; its surrogates would break every print of the message.
        super().__init__(f"{uri}: {cause}".encode("utf-8", "backslashreplace").decode())

    def __reduce__(self) -> tuple[type["StorageError"], tuple[str, str]]:
        return type(self), (self.uri, self.cause)


class NotFoundError(StorageError):
    """No such file, object or bucket."""


class PermissionDeniedError(StorageError):
    """The file mode, the credentials or the bucket's policy do not allow it."""


class UnavailableError(StorageError):
    """The endpoint could not be reached, or went on throttling until the retries were used up."""


class InvalidUriError(StorageError, UsageError):
    """The URI cannot name anything: wrong scheme, empty, no bucket, or a key that cannot be written."""


@contextmanager
def argument(flag: str) -> Iterator[None]:
    """Before work starts: what the URI given as `flag` lacks, or does not allow, becomes a UsageError that says so."""
    try:
        yield
    except (NotFoundError, PermissionDeniedError, InvalidUriError) as error:
        raise UsageError(f"{flag}: {error}") from error


def from_os(uri: str, error: OSError | ValueError) -> StorageError:
    """What a failed call to the operating system means for `uri`."""
    if isinstance(error, StorageError):
        return error
    if not isinstance(error, OSError):
        return InvalidUriError(uri, f"not a usable path: {error}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(uri, "no space left on the device: free some, or name another folder")
    cause = (error.strerror or str(error)).lower()
    if error.errno == errno.ENOENT:
        return NotFoundError(uri, cause)
    if error.errno in (errno.ENOTDIR, errno.EEXIST):  # as os.makedirs says it of the last folder
        return NotFoundError(uri, "a file lies where its folder would be: name another folder")
    if error.errno == errno.EROFS:
        return PermissionDeniedError(uri, f"{cause}: name another folder, or mount it for writing")
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDeniedError(uri, f"{cause}: check the owner and the mode of the file and its folder")
    return StorageError(uri, cause)


# Status, S3 error code and message are all that is taken from an answer: the rest of its text (headers, request
# dumps, Rust debug output) is noise, and not worth the risk that a secret stands in it.
_STATUS = re.compile(r"status code: (\d+)")
_CODE = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_DENIED_CODES = {"AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "InvalidToken",
                 "TokenRefreshRequired", "RequestTimeTooSkewed"}  # fmt: skip
_REGION_CODES = {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"}
CREDENTIALS_HINT = "check the credentials (AWS_PROFILE, or AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY)"


def is_busy(error: BaseException) -> bool:
    """Whether the server said "later": throttling, overload, or two conditional writes that met (409)."""
    text = _text_of(error)
    status = _found(_STATUS, text)
    return status in ("429", "500", "502", "503", "504") or "ConditionalRequestConflict" in text


def from_s3(uri: str, endpoint: str, error: BaseException) -> StorageError:
    """What an error of obstore or botocore means for `uri`."""
    if isinstance(error, StorageError):
        return error
    text, kind = _text_of(error), type(error).__name__
    bucket = uri.removeprefix("s3://").partition("/")[0]
    status, code = _found(_STATUS, text), _found(_CODE, text)
    detail = f"{code}: {_found(_MESSAGE, text)}" if code else f"status {status}"
    if code == "NoSuchBucket":
        return NotFoundError(uri, f"there is no bucket named {bucket} at {endpoint}: create it, or correct the URI")
    if code in _REGION_CODES or "BareRedirect" in text:
        return StorageError(uri, f"bucket {bucket} lies in another region: set AWS_REGION to it ({detail})")
    if code in _DENIED_CODES or status in ("401", "403"):
        return PermissionDeniedError(uri, f"refused ({detail}): {CREDENTIALS_HINT} and their rights on {bucket}")
    if kind == "UnauthenticatedError" or any(each in kind for each in ("Credential", "Profile", "Token")):
        return PermissionDeniedError(uri, f"no usable AWS credentials ({kind}): {CREDENTIALS_HINT}")
    if isinstance(error, FileNotFoundError) or status == "404":
        return NotFoundError(uri, "no such object")
    if is_busy(error):
        return UnavailableError(uri, f"{endpoint} stayed too busy ({status} {detail}): try again later or more gently")
    if "kind: Connect" in text or "kind: Timeout" in text or "kind: Request" in text:
        return UnavailableError(uri, f"cannot reach {endpoint} ({_network_cause(text)}): check AWS_ENDPOINT_URL")
    if isinstance(error, ValueError) or kind == "InvalidPathError":
        return InvalidUriError(uri, _first_line(text))
    return StorageError(uri, detail if status else _first_line(text))


def _text_of(error: BaseException) -> str:
    """The text of an error; of a botocore answer, status and code in the form that S3 and obstore write them."""
    answer = getattr(error, "response", None)
    if not isinstance(answer, dict):
        return str(error)
    said = answer.get("Error", {})
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    return f"status code: {status} <Code>{said.get('Code')}</Code><Message>{said.get('Message')}</Message>"


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match.group(1) if match else ""


def _network_cause(text: str) -> str:
    for clue, cause in (("Connection refused", "connection refused"), ("dns error", "no such host name"),
                        ("TimedOut", "timed out"), ("timed out", "timed out"),
                        ("Connection reset", "connection reset")):  # fmt: skip
        if clue in text:
            return cause
    return "network error"


def _first_line(text: str) -> str:
    return text.partition("\n")[0][:300]
