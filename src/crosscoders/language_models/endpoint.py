"""A language model behind an OpenAI-compatible address; every reply is kept on disk, so that no question is sent twice."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from crosscoders import storage
from crosscoders.errors import UserError, shortened
from crosscoders.study.surroundings import ENDPOINTS

PARALLEL = 4
"""Requests that are under way at a time."""
TIMEOUT = 120.0
"""Seconds after which a request is given up."""
TRIES = 5
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the second try, doubled before every further one, and at most."""
PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Statuses after which another try may succeed."""


@dataclass(frozen=True)
class Address:
    """Where an endpoint is, and the key that it knows us by; the key is in no text that this class gives."""

    url: str
    key: str
    key_name: str

    @classmethod
    def of_environment(cls) -> Address:
        """The address that the environment names.

        Raises
        ------
        UserError
            It names none, or none of http or https.
        """
        for name, key_name in ENDPOINTS:
            if url := os.environ.get(name, "").strip().rstrip("/"):
                if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                    raise UserError(f"{name}: no address; expected one as https://api.example.org/v1")
                return cls(url, os.environ.get(key_name, "").strip(), key_name)
        raise UserError(
            f"explain.endpoint: {ENDPOINTS[0][0]} is not set; expected an address as https://api.example.org/v1"
        )

    @property
    def host(self) -> str:
        """The name of the machine, without what else the address may hold."""
        return urlsplit(self.url).hostname or ""

    def __repr__(self) -> str:
        return f"Address({self.host})"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another machine."""

    def redirect_request(self, *_: object) -> None:
        return None


@dataclass(frozen=True)
class Reply:
    """What a model said, and the name by which the endpoint calls the model that said it."""

    text: str
    model: str


class Endpoint:
    """Asks a model, with temperature 0 and a seed.

    Parameters
    ----------
    model : str
        Its name at the endpoint.
    seed : int
    replies : Path
        Folder in which replies are kept, by a digest of what was asked. Replies in it are taken in place of requests.
    """

    def __init__(self, model: str, seed: int, replies: Path):
        self.model, self.seed, self.replies = model, seed, replies
        self._address: Address | None = None

    def ask(self, prompts: list[str], asked: Callable[[int], None] = lambda count: None) -> list[Reply]:
        """Replies to prompts, in their order; a prompt that stands there twice is sent once.

        Parameters
        ----------
        prompts : list of str
        asked : function
            Gets 1 with every reply.

        Raises
        ------
        UserError
            The endpoint is not named, cannot be reached, refuses the request, or sends something else than a reply.
        """
        pool = ThreadPoolExecutor(PARALLEL)
        try:
            made = {}
            for prompt, reply in zip(
                unique := list(dict.fromkeys(prompts)), pool.map(self._reply, unique), strict=True
            ):
                made[prompt] = reply
                asked(1)
        finally:
            pool.shutdown(cancel_futures=True)
        return [made[prompt] for prompt in prompts]

    def _reply(self, prompt: str) -> Reply:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "seed": self.seed,
        }
        text = json.dumps(body, sort_keys=True)
        path = self.replies / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
        if path.is_file():
            return Reply(**{name: storage.read_json(path)[name] for name in ("text", "model")})
        reply = self._sent(text.encode())
        storage.write_sealed_json({"asked": body, "text": reply.text, "model": reply.model}, path)
        return reply

    def _sent(self, body: bytes) -> Reply:
        """Send a request, and again after a while where that may help."""
        self._address = self._address or Address.of_environment()
        for attempt in range(1, TRIES + 1):
            try:
                return self._read(_post(self._address, body))
            except urllib.error.HTTPError as error:
                if error.code not in PASSING or attempt == TRIES:
                    raise UserError(self._refusal(error)) from None
                wait = _stated_wait(error.headers.get("Retry-After"), attempt)
            except (OSError, http.client.HTTPException) as error:
                if attempt == TRIES:
                    reason = getattr(error, "reason", None) or error or type(error).__name__
                    line = f"explain.endpoint: {self._address.host} cannot be reached ({reason}) in {TRIES} tries"
                    raise UserError(shortened(line)) from None
                wait = _stated_wait(None, attempt)
            time.sleep(wait)
        raise AssertionError("every try returns or raises")

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        host, status = self._address.host, error.code
        if status in (401, 403):
            return f"{self._address.key_name}: refused by {host} (status {status}); expected a key that it knows"
        said = " ".join(error.read(500).decode(errors="replace").split())
        if self._address.key:
            said = said.replace(self._address.key, "…")
        return shortened(f"explain.endpoint: {host} refuses requests to {self.model!r} (status {status}): {said}")

    def _read(self, content: bytes) -> Reply:
        """The reply in what the endpoint sent."""
        try:
            sent = json.loads(content)
            text, model = sent["choices"][0]["message"]["content"], sent.get("model") or self.model
            if not isinstance(text, str) or not isinstance(model, str):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            said = " ".join(content[:80].decode(errors="replace").split())
            line = f"explain.endpoint: {self._address.host} sent {said!r}; expected choices with a message, as chat completions have"
            raise UserError(shortened(line, 240)) from None
        return Reply(text, model)


def _post(address: Address, body: bytes) -> bytes:
    request = urllib.request.Request(f"{address.url}/chat/completions", data=body, method="POST")
    request.add_header("Content-Type", "application/json")
    if address.key:
        request.add_header("Authorization", f"Bearer {address.key}")
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT) as response:
        return response.read()


def _stated_wait(stated: str | None, attempt: int) -> float:
    """Seconds until the next try: what the endpoint asks for, else twice as long as before."""
    own = FIRST_WAIT * 2 ** (attempt - 1)
    with contextlib.suppress(ValueError):  # a date
        own = max(own, float(stated or 0))
    return min(own, LONGEST_WAIT)
