"""One request to an OpenAI-compatible endpoint, and what came of it: an answer, trouble that may pass, or an error."""

from __future__ import annotations

import email.utils
import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from typing import Any

from modeldiff.errors import InputError, MachineError

# Statuses besides 5xx after which the same request may succeed: timeout, too early, too many requests.
_PASSING = {408, 425, 429}
_MAX_REPLY_BYTES = 8 << 20
_MAX_REASON = 200


class TroubleError(Exception):
    """No answer this time; the same request may get one later."""

    def __init__(self, reason: str, *, wait: float | None = None, own: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        """Seconds that the server asks to be left alone, if it says."""
        self.own = own
        """True when the request itself may be what the server fails on."""


class RefusedError(InputError):
    """The server will not answer this request, however often it is sent."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        """The field of the request that the server does not take, if it says."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to whatever host it names."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        return None


class Endpoint:
    """An endpoint and the key to it. The key appears in the header of requests and nowhere else.

    Args:
        base_url: checked by `check_base_url`.
        key: None: requests carry none.
        key_env: where the key comes from, for messages.
        timeout: seconds for one request, from sending it to the last byte of its answer.
    """

    def __init__(self, base_url: str, key: str | None, key_env: str, timeout: float) -> None:
        self.base_url = base_url
        self._key, self._key_env, self._timeout = key, key_env, timeout
        self._opener = urllib.request.build_opener(_NoRedirect)

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """POST {base_url}/chat/completions.

        Raises:
            TroubleError: too many requests, a server error, a timeout, no connection, or an answer that is not JSON.
            RefusedError: any other status.
            MachineError: the certificate is not accepted, or the account's quota is used up.
        """
        request = urllib.request.Request(
            f"{self.base_url}/chat/completions",
            data=json.dumps(body, ensure_ascii=True).encode(),
            headers={"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "modeldiff"},
            method="POST",
        )
        if self._key is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            content = self._exchange(request)
        except urllib.error.HTTPError as error:
            raise self._explained(error) from None
        except TimeoutError:
            raise TroubleError(f"no answer within {self._timeout:g} s") from None
        except urllib.error.URLError as error:
            raise self._unreachable(error.reason) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        try:
            data = json.loads(content)
        except ValueError:
            raise TroubleError("its answer is not JSON", own=True) from None
        if not isinstance(data, dict):
            raise TroubleError("its answer is not a JSON object", own=True)
        return data

    def hide_key(self, text: str) -> str:
        """The text without the key, should the other side have repeated it."""
        return text.replace(self._key, "[key]") if self._key else text

    def _exchange(self, request: urllib.request.Request) -> bytes:
        # The timeout of a socket begins anew with every byte that arrives; the deadline does not.
        deadline = time.monotonic() + self._timeout
        with self._opener.open(request, timeout=self._timeout) as response:
            return _read(response.read1, deadline)

    def _explained(self, error: urllib.error.HTTPError) -> Exception:
        with error:
            status, headers = error.code, error.headers
            details = _details(error)
        said = self.hide_key(_one_line(details.get("message")))
        because = f"HTTP {status}" + (f": {said}" if said else "")
        where = f"the judge at {self.base_url}"
        if status == 429 and details.get("code") == "insufficient_quota":
            return MachineError(f"the account at {self.base_url} has used up its quota")
        if status in _PASSING or status >= 500:
            return TroubleError(because, wait=_retry_after(headers), own=status >= 500)
        if status in (401, 403):
            # Some servers repeat parts of the key in what they say, so it is left out.
            found = "is not accepted" if self._key else "is not set"
            return RefusedError(f"{where} refuses access (HTTP {status}): the key in {self._key_env} {found}")
        if 300 <= status < 400:
            return RefusedError(f"{where} has moved (HTTP {status}): give its address with --judge-base-url")
        if status == 404:
            return RefusedError(f"{where} was not found ({because}): check --judge-base-url and --judge-model")
        field = details.get("param")
        return RefusedError(f"{where} refuses the request ({because})", field if isinstance(field, str) else None)

    def _unreachable(self, reason: Any) -> Exception:
        if isinstance(reason, TimeoutError):
            return TroubleError(f"no answer within {self._timeout:g} s")
        if isinstance(reason, ssl.SSLCertVerificationError):
            return MachineError(f"the certificate of {self.base_url} is not accepted ({reason.verify_message})")
        words = getattr(reason, "strerror", None) or _one_line(str(reason)) or type(reason).__name__
        return TroubleError(f"no connection: {self.hide_key(words)}")


def _read(read1: Callable[[int], bytes], deadline: float) -> bytes:
    content = bytearray()
    while block := read1(1 << 16):
        content += block
        if len(content) > _MAX_REPLY_BYTES:
            raise TroubleError(f"its answer is longer than {_MAX_REPLY_BYTES >> 20} MiB", own=True)
        if time.monotonic() > deadline:
            raise TimeoutError
    return bytes(content)


def _details(error: urllib.error.HTTPError) -> dict[str, Any]:
    """What an error's body says, in the usual form {"error": {"message", "code", "param"}} or a plain one."""
    try:
        data = json.loads(error.read(1 << 16))
    except (ValueError, OSError, http.client.HTTPException):
        return {}
    inner = data.get("error", data) if isinstance(data, dict) else {}
    return inner if isinstance(inner, dict) else {"message": inner}


def _one_line(text: Any) -> str:
    if not isinstance(text, str):
        return ""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return words if len(words) <= _MAX_REASON else words[:_MAX_REASON] + " ..."


def _retry_after(headers: Message) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date."""
    value = str(headers.get("Retry-After", "")).strip()
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
