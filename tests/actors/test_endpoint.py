"""The HTTP endpoint against a real local server that misbehaves in every way that servers do."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from actors.endpoint import ChatEndpoint
from rewards.asking import Failed, Prompt
from rewards.config import EndpointConfig
from trainers.data.errors import UserError

TOKEN = "not-a-secret-1234"


class Server:
    """Answers with what its `plan` says, attempt by attempt; the last entry repeats."""

    def __init__(self, *plan: Any):
        self.plan, self.requests = list(plan), []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append((self.path, json.loads(body)))
                outer.headers.append(dict(self.headers))
                step = outer.plan.pop(0) if len(outer.plan) > 1 else outer.plan[0]
                if callable(step):
                    step(self)
                    return
                status, content = step
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        # Looked at that often, a shutdown takes no half second.
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


def says(text: Any, tokens: int = 10) -> tuple[int, dict[str, Any]]:
    return 200, {"choices": [{"message": {"content": text}}], "usage": {"total_tokens": tokens}}


@pytest.fixture
def serve(store, monkeypatch):
    """`serve(*plan, **settings)` -> server and endpoint."""
    monkeypatch.setenv("JUDGE_TEST_TOKEN", TOKEN)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def make(*plan: Any, **settings: Any) -> tuple[Server, ChatEndpoint]:
        server = Server(*plan)
        servers.append(server)
        values = {"model": "m", "backoff_seconds": 0.0, "concurrency": 1, "timeout_seconds": 5}
        config = EndpointConfig(url=server.url, **(values | settings))
        return server, ChatEndpoint(config, store, 32)

    yield make
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def ask(endpoint: ChatEndpoint, number: int = 1) -> list[str | Failed]:
    return endpoint([Prompt.of(f"question {i}") for i in range(number)])


def test_a_request_is_openais_and_carries_image_and_token(serve, samples, store):
    server, endpoint = serve(says("Rating: 5"), token_variable="JUDGE_TEST_TOKEN")
    assert endpoint([Prompt.of("Look.", samples[0].images)]) == ["Rating: 5"]
    ((path, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 32, 0)
    (message,) = body["messages"]
    image, text = message["content"]
    assert message["role"] == "user" and text == {"type": "text", "text": "Look."}
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == store.read_bytes(samples[0].images[0])
    assert server.headers[0]["Authorization"] == f"Bearer {TOKEN}"


def test_answers_keep_the_order_of_the_prompts(serve):
    def echo(handler: Any) -> None:
        text = server.requests[-1][1]["messages"][0]["content"][0]["text"]
        data = json.dumps(says(text)[1]).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    server, endpoint = serve(echo)
    assert ask(endpoint, 5) == [f"question {i}" for i in range(5)]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_what_may_pass_is_tried_again(serve, status):
    server, endpoint = serve((status, {}), (status, {}), says("yes"), retries=2)
    assert ask(endpoint) == ["yes"] and len(server.requests) == 3
    server, endpoint = serve((status, {}), retries=2)
    assert ask(endpoint) == [Failed(f"status {status}, 3 times")] and len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_what_will_not_pass_is_not_tried_again(serve, status):
    server, endpoint = serve((status, {"error": "no"}), retries=5)
    assert ask(endpoint) == [Failed(f"status {status}")] and len(server.requests) == 1


def test_a_slow_server_is_given_up(serve):
    _, endpoint = serve(lambda handler: time.sleep(1.5), timeout_seconds=0.3, retries=1)
    begun = time.perf_counter()
    (failed,) = ask(endpoint)
    assert isinstance(failed, Failed) and failed.reason.endswith("2 times")
    assert "no answer in" in failed.reason and time.perf_counter() - begun < 1.4


def test_no_server_at_all(serve):
    server, endpoint = serve(says("x"), retries=1)
    server.http.shutdown()
    server.http.server_close()
    (failed,) = ask(endpoint)
    assert isinstance(failed, Failed) and "no connection" in failed.reason


@pytest.mark.parametrize(
    "content",
    [b"<html>", b"", {}, {"choices": []}, {"choices": [{"message": {}}]}, [1], says(None)[1]],
)
def test_a_malformed_answer_is_a_failure(serve, content):
    _, endpoint = serve((200, content))
    (failed,) = ask(endpoint)
    assert isinstance(failed, Failed) and "answer" in failed.reason


def test_a_cut_connection_is_a_failure(serve):
    _, endpoint = serve(lambda handler: handler.connection.close(), retries=0)
    assert isinstance(ask(endpoint)[0], Failed)


def test_the_budget_of_requests_counts_retries(serve):
    server, endpoint = serve((500, {}), says("a"), max_requests=3, retries=1)
    answers = ask(endpoint, 4)
    assert answers[:2] == ["a", "a"]
    assert answers[2:] == [Failed("judge.endpoint.max_requests=3 is used up")] * 2
    assert len(server.requests) == endpoint.requests == 3


def test_the_budget_of_tokens_ends_the_spending(serve):
    _, endpoint = serve(says("a", 40), max_total_tokens=60)
    answers = ask(endpoint, 3)
    assert answers[:2] == ["a", "a"] and endpoint.tokens == 80
    assert answers[2] == Failed("judge.endpoint.max_total_tokens=60 is used up")


def test_a_budget_that_cannot_be_kept_is_a_failure(serve):
    _, endpoint = serve((200, {"choices": [{"message": {"content": "a"}}]}), max_total_tokens=60)
    assert "counts no tokens" in ask(endpoint)[0].reason


def test_a_missing_or_broken_token_is_refused_without_showing_it(serve, monkeypatch):
    with pytest.raises(UserError, match="the environment has no NO_SUCH_TOKEN"):
        serve(says("a"), token_variable="NO_SUCH_TOKEN")
    monkeypatch.setenv("JUDGE_TEST_TOKEN", f"{TOKEN}\n")
    with pytest.raises(UserError) as caught:
        serve(says("a"), token_variable="JUDGE_TEST_TOKEN")
    assert TOKEN not in str(caught.value) and "JUDGE_TEST_TOKEN" in str(caught.value)


def test_the_token_is_in_no_failure(serve):
    for plan in ((401, {"error": TOKEN}), (200, TOKEN.encode()), (500, {})):
        _, endpoint = serve(plan, token_variable="JUDGE_TEST_TOKEN", retries=0)
        assert TOKEN not in ask(endpoint)[0].reason
