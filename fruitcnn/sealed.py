"""Secrets on their way to a cluster: sealed with the cluster's own token, readable nowhere in between. For storage.

Whatever a submitted job is given to know, Ray keeps and shows: in its store, its API and its dashboard. So settings
that open a bucket travel as one sealed text, FRUITCNN_SEALED. Who can open it holds the cluster's token, and whoever
holds that may run any code on the cluster anyway.
"""

import base64
import hashlib
import json
import os
import secrets
from collections.abc import Mapping, MutableMapping
from pathlib import Path

VARIABLE = "FRUITCNN_SEALED"
TOKEN_SOURCES = "RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH names, ~/.ray/auth_token"
_SALT_BYTES = 16


class SealError(ValueError):
    """Sealed settings that the token at hand does not open; the message holds neither."""


def find_token(environ: Mapping[str, str]) -> str | None:
    """The cluster's token, from where Ray itself looks for it, in Ray's order; None if there is none."""
    if token := environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    place = environ.get("RAY_AUTH_TOKEN_PATH") or str(Path.home() / ".ray" / "auth_token")
    try:
        return Path(place).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def seal(settings: Mapping[str, str], token: str) -> str:
    """`settings` as text that only `token` opens; different at every call."""
    from cryptography.fernet import Fernet

    salt = secrets.token_bytes(_SALT_BYTES)
    content = json.dumps(dict(settings)).encode()
    return base64.urlsafe_b64encode(salt).decode() + "." + Fernet(_key(token, salt)).encrypt(content).decode()


def unseal(text: str, token: str | None) -> dict[str, str]:
    """What `seal` was given. SealError for another token, no token, or a text that was changed."""
    from cryptography.fernet import Fernet, InvalidToken

    if token is None:
        raise SealError(f"the job brought sealed credentials, and this node has no token to open them: {TOKEN_SOURCES}")
    salt, _, sealed = text.partition(".")
    try:
        return dict(json.loads(Fernet(_key(token, base64.urlsafe_b64decode(salt))).decrypt(sealed.encode())))
    except (InvalidToken, ValueError):
        raise SealError(
            "the job's sealed credentials do not open with this node's token: are all nodes and the submitting machine "
            "given the same one?"
        ) from None


def open_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Put what FRUITCNN_SEALED holds into `environ`, in memory only; nothing to do where it is not set.

    A node's own settings stay out of it: of two key pairs the one that was sent with the job counts.
    """
    if text := environ.get(VARIABLE):
        environ.update(unseal(text, find_token(environ)))
        del environ[VARIABLE]


def _key(token: str, salt: bytes) -> bytes:
    return base64.urlsafe_b64encode(hashlib.scrypt(token.encode(), salt=salt, n=2**14, r=8, p=1, dklen=32))
