"""A Cost Explorer that answers from a script, over HTTP, and takes no request that AWS' own model would refuse.

Moto has no anomalies, no right-sizing and no pages. Requests and answers are validated by botocore's model of the
service; ``NextPageToken`` gives one page after the other.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import botocore.session
from botocore.validate import ParamValidator

MODEL = botocore.session.get_session().get_service_model("ce")


class CostExplorerServer:
    """``pages``: operation -> its pages, or a function of the request that gives them. ``asked``: what came in."""

    def __init__(self) -> None:
        self.pages: dict[str, Any] = {}
        self.asked: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.status = 200
        self.url = ""

    def answer(self, operation: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.status != 200:
            return self.status, {"__type": "InternalFailure", "message": "broken"}
        model = MODEL.operation_model(operation)
        token = body.pop("NextPageToken", None)
        report = ParamValidator().validate(body, model.input_shape)
        if report.has_errors():
            return 400, {"__type": "ValidationException", "message": report.generate_report()}
        if len(body.get("GroupBy", ())) > 2:
            return 400, {"__type": "ValidationException", "message": "GroupBy: at most 2"}
        self.asked[operation].append(body)
        pages = self.pages.get(operation, [{}])
        pages = pages(body) if callable(pages) else pages
        at = int(token or 0)
        page = dict(pages[at]) | ({"NextPageToken": str(at + 1)} if at + 1 < len(pages) else {})
        report = ParamValidator().validate(page, model.output_shape)
        assert not report.has_errors(), report.generate_report()
        return 200, page


@contextmanager
def serving(address: tuple[str, int]) -> Iterator[CostExplorerServer]:
    """The server, in a thread, as long as the ``with`` lasts."""
    server = CostExplorerServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            operation = self.headers["X-Amz-Target"].rpartition(".")[2]
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = server.answer(operation, body)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(address, Handler)
    server.url = f"http://{address[0]}:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join(5)
