"""A server that speaks OpenAI's protocol and rates drawn captions by the facts it is told."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from trainers.data.scenes import parse_mentions


class Handler(BaseHTTPRequestHandler):
    """Rates 6 minus one for every mention that the facts do not have."""

    def do_POST(self) -> None:
        self.server.authorizations.add(self.headers["Authorization"])
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        image, text = body["messages"][0]["content"]
        data = base64.b64decode(image["image_url"]["url"].partition(",")[2])
        assert Image.open(io.BytesIO(data)).size == (64, 64)
        answer = text["text"].split("Answer: ")[1].split("\n")[0]
        facts = {m.type for m in parse_mentions(text["text"].split("Question: ")[0])}
        wrong = sum(mention.type not in facts for mention in parse_mentions(answer))
        content = f"{wrong} invented.\nRating: {max(0, 6 - wrong)}"
        self.answer({"choices": [{"message": {"content": content}}]})

    def answer(self, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def rating_server(authorizations: set[str | None] | None = None) -> Iterator[str]:
    """The URL of a server that runs as long as the block does; who asked it is noted."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.authorizations = set() if authorizations is None else authorizations
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
