"""A chat model behind an HTTP server that speaks OpenAI's protocol, as something to ask.

Every request has a time limit, failures that may pass are tried again, and a budget ends the
spending. The access token is read from the environment when a request is sent; it is in no setting,
log or record.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

from rewards.asking import Failed, Prompt
from rewards.config import EndpointConfig
from trainers.data.errors import UserError
from trainers.data.image_codec import encode_png
from trainers.data.images import ImageStore

TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}
"""What servers take as it is; other formats are sent as PNG."""
MAX_ANSWER_BYTES = 2**22


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the token must not follow to another host."""

    def redirect_request(self, *_: Any) -> None:
        """No request."""


class ChatEndpoint:
    """Asks a server; safe to call from one thread at a time.

    Args:
        store: where prompts' images are; they are sent as data, never as addresses.
    """

    def __init__(self, config: EndpointConfig, store: ImageStore, max_tokens: int):
        self.config, self.store, self.max_tokens = config, store, max_tokens
        self.requests = 0
        """Attempts so far, retries included."""
        self.tokens = 0
        """Spent so far, as the server counts them."""
        self._lock = threading.Lock()
        self._opener = urllib.request.build_opener(_NoRedirect)
        check_token(config)

    def __call__(self, prompts: Sequence[Prompt]) -> list[str | Failed]:
        """The server's answer to each prompt, `concurrency` at a time."""
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            return list(pool.map(self._answer, prompts))

    def _answer(self, prompt: Prompt) -> str | Failed:
        body = json.dumps(self._body(prompt)).encode()
        wait = self.config.backoff_seconds
        reason = Failed("not tried")
        for attempt in range(self.config.retries + 1):
            if attempt:
                time.sleep(wait)
                wait *= 2
            if (refusal := self._spend_request()) is not None:
                return refusal
            try:
                return self._read(self._send(body))
            except urllib.error.HTTPError as error:
                with error:
                    reason = Failed(f"status {error.code}")
                if error.code not in TRANSIENT:
                    return reason
            except TimeoutError:
                reason = Failed(f"no answer in {self.config.timeout_seconds:g} s")
            except (urllib.error.URLError, HTTPException, ConnectionError) as error:
                cause = getattr(error, "reason", error)
                slow = isinstance(cause, TimeoutError)
                reason = Failed("no answer in time" if slow else f"no connection: {cause}")
        return Failed(f"{reason.reason}, {self.config.retries + 1} times")

    def _spend_request(self) -> Failed | None:
        with self._lock:
            limit = self.config.max_total_tokens
            if limit is not None and self.tokens >= limit:
                return Failed(f"judge.endpoint.max_total_tokens={limit} is used up")
            if self.requests >= self.config.max_requests:
                return Failed(f"judge.endpoint.max_requests={self.config.max_requests} is used up")
            self.requests += 1
        return None

    def _send(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.config.token_variable is not None:
            headers["Authorization"] = f"Bearer {os.environ[self.config.token_variable]}"
        request = urllib.request.Request(  # noqa: S310 - the settings allow http(s) only
            f"{self.config.url.rstrip('/')}/chat/completions", body, headers, method="POST"
        )
        with self._opener.open(request, timeout=self.config.timeout_seconds) as response:
            answer: bytes = response.read(MAX_ANSWER_BYTES)
        return answer

    def _read(self, answer: bytes) -> str | Failed:
        """The text of the first choice; anything else than the protocol is a failure."""
        try:
            content = json.loads(answer)
            text = content["choices"][0]["message"]["content"]
            spent = int((content.get("usage") or {}).get("total_tokens", 0))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            return Failed(f"the server's answer is malformed ({type(error).__name__})")
        if self.config.max_total_tokens is not None and not spent:
            return Failed(
                "the server counts no tokens, so judge.endpoint.max_total_tokens cannot be kept"
            )
        with self._lock:
            self.tokens += spent
        return text if isinstance(text, str) else Failed("the server's answer holds no text")

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        images = iter(prompt.images)
        messages = []
        for turn in prompt.turns:
            parts: list[dict[str, Any]] = [
                {"type": "image_url", "image_url": {"url": self._data(next(images))}}
                for _ in range(turn.num_images)
            ]
            parts.append({"type": "text", "text": turn.text})
            messages.append({"role": turn.role, "content": parts})
        return {
            "model": self.config.model,
            "messages": messages,
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }

    def _data(self, reference: str) -> str:
        kind = MEDIA_TYPES.get(self.store.path(reference).suffix)
        data = self.store.read_bytes(reference)
        if kind is None:
            kind, data = "image/png", encode_png(self.store.get(reference))
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def check_token(config: EndpointConfig) -> None:
    """Refuse settings whose token is not in the environment."""
    name = config.token_variable
    if name is None:
        return
    token = os.environ.get(name, "")
    if token and not all("!" <= character <= "~" for character in token):
        # What a header refuses stands in the refusal's text, which must not hold the token.
        raise UserError(
            f"judge.endpoint.token_variable: {name} holds a space, a line end or a letter outside "
            "ASCII; export the bare token"
        )
    if not token:
        raise UserError(
            f"judge.endpoint.token_variable: the environment has no {name}; export it, or set "
            "judge.endpoint.token_variable=null for a server without one"
        )
