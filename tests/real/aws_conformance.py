"""A server for one AWS service that takes nothing that the service's own API model would refuse.

``Front`` checks every request against botocore's model of the service (operation, method and path, required members,
types, lengths, ranges, patterns, enumerations, a signature), then answers it from ``handlers``, or passes it on to a
server behind (moto's). On the way it makes the faults that a test orders: lost answers, slow ones, errors by code.

moto itself reads requests and writes answers from the same models (moto/core/parse.py, serialize.py, routing.py), so
that is not written again here; what moto does not do is refuse what the model does not allow.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from botocore.validate import ParamValidator

pytest.importorskip("moto", reason="moto is not installed (pip install 'moto[server]')")
from moto.core.exceptions import ServiceException
from moto.core.parse import PROTOCOL_PARSERS
from moto.core.request import Request, determine_request_protocol
from moto.core.routing import get_service_router
from moto.core.serialize import get_serializer_class
from moto.core.utils import get_service_model
from werkzeug import Response
from werkzeug.exceptions import NotFound
from werkzeug.serving import WSGIRequestHandler, make_server

Handler = Callable[[dict[str, Any]], Any]
"""Gets the parameters of a request, gives the members of its answer. Raises Refused."""


class Refused(Exception):
    """The service says no. ``code`` as in the API reference; ``more``: members of the error's own shape."""

    def __init__(self, code: str, message: str = "", **more: Any) -> None:
        super().__init__(message or code)
        self.code, self.message, self.more = code, message or code, more


@dataclass(frozen=True)
class Heard:
    """One request that came in and fits the model."""

    operation: str
    params: dict[str, Any]


@dataclass
class Front:
    """One service. Everything here may be changed by the test while it runs."""

    service: str
    behind: str | None = None
    """Where what no handler answers is passed on to: ``moto.url``."""
    handlers: dict[str, Handler] = field(default_factory=dict)
    heard: list[Heard] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    """What came in against the model; ``front`` fails the test that left one."""
    wider: tuple[str, ...] = ()
    """Members (``Shape.Member``) whose documented values do not match the model's own pattern; the test says where."""
    before: Callable[[str, dict[str, Any]], None] = lambda _operation, _params: None
    """Runs before each request is answered; raises Refused (a rate limit, for example)."""
    _faults: dict[str, deque[str | float]] = field(default_factory=lambda: defaultdict(deque))
    _turn: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def order(self, operation: str, *faults: str | float) -> None:
        """The next requests of ``operation`` go wrong, one fault each.

        ``lost``: it happens, and the connection is closed without an answer. ``dropped``: it does not happen, and no
        answer comes. ``503``: an answer without an error document. A number: so many seconds late. ``pass``: goes well.
        Anything else is an error code, and nothing happens.
        """
        self._faults[operation].extend(faults)

    def clear(self) -> None:
        """No fault is left, nothing was heard."""
        self._faults.clear()
        self.heard.clear()
        self.violations.clear()

    def operations(self) -> list[str]:
        """What was asked, in order."""
        return [h.operation for h in self.heard]

    # ---- one request ----

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        request = Request(environ)
        body = request.get_data(cache=True)
        model = get_service_model(self.service)
        try:
            operation, labels = get_service_router(self.service).match(request)
        except NotFound:
            self.violations.append(f"{request.method} {request.path} is no operation of {self.service}")
            return Response("no such operation", 404)(environ, start_response)
        protocol = determine_request_protocol(model, request.content_type)
        try:
            parsed = PROTOCOL_PARSERS[protocol](operation).parse(
                {
                    "method": request.method,
                    "values": request.values,
                    "headers": request.headers,
                    "body": body,
                    "url_path": request.path,
                    "url_params": labels,
                }
            )
            params = {k: v for k, v in parsed.items() if v is not None}
            wrong = [w for w in _against(operation.input_shape, params) if not w.startswith(self.wider or ("-",))]
            if f"/{model.signing_name}/aws4_request" not in request.headers.get("Authorization", ""):
                wrong.append(f"it is not signed for {model.signing_name}")
            if wrong:
                self.violations.append(f"{operation.name}: {'; '.join(wrong)}")
                raise Refused("ValidationException", "; ".join(wrong))
            response = self._answered(operation, protocol, params, request)
        except Refused as e:
            response = _written(operation, protocol, e)
        return response(environ, start_response)

    def _answered(self, operation: Any, protocol: str, params: dict[str, Any], request: Request) -> Response:
        self.heard.append(Heard(operation.name, params))
        waiting = self._faults.get(operation.name)
        fault = waiting.popleft() if waiting else "pass"
        if isinstance(fault, float | int):
            threading.Event().wait(fault)
        elif fault == "dropped":
            return _cut(request.environ)
        elif fault == "503":
            return Response("Service Unavailable", 503)
        elif fault not in ("pass", "lost"):
            raise Refused(fault)
        self.before(operation.name, params)
        handler = self.handlers.get(operation.name)
        if handler is not None:
            with self._turn:
                response = _written(operation, protocol, handler(params))
        elif self.behind is not None:
            response = self._passed_on(request)
        else:
            raise Refused("UnknownOperationException", f"the test has no answer to {operation.name}")
        return _cut(request.environ) if fault == "lost" else response

    def _passed_on(self, request: Request) -> Response:
        url = f"{self.behind}{request.raw_path}"
        if request.query_string:
            url += "?" + request.query_string.decode()
        answer = httpx.request(
            request.method,
            url,
            headers=[(k, v) for k, v in request.headers.items() if k.lower() not in ("connection", "expect")],
            content=request.get_data(),
            timeout=20,
        )
        kept = [(k, v) for k, v in answer.headers.items() if k.lower() not in _OWN]
        return Response(answer.content, answer.status_code, kept)


_OWN = ("connection", "content-length", "date", "server")
"""Headers of an answer that the front's own server writes."""


class _Error(ServiceException):
    """As moto's own, but of no service's package: its shape comes from the model that is spoken."""


def _written(operation: Any, protocol: str, result: Any) -> Response:
    if isinstance(result, Refused):
        error = _Error(result.code, result.message)
        for name, value in result.more.items():
            setattr(error, name, value)
        result = error
    writer = get_serializer_class(operation.service_model.service_name, protocol)(operation)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about error codes that the model does not list: services send such, too
        answer = writer.serialize({} if result is None else result)
    return Response(answer["body"], int(answer["status_code"]), dict(answer["headers"]))


def _cut(environ: dict[str, Any]) -> Response:
    """No answer: the connection is closed in the client's face."""
    with contextlib.suppress(OSError):
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    return Response("", 500)


def _against(shape: Any, params: dict[str, Any]) -> list[str]:
    """What of ``params`` the model does not allow."""
    if shape is None:
        return []
    report = ParamValidator().validate(params, shape)
    return ([report.generate_report()] if report.has_errors() else []) + list(_strictly(shape, params, shape.name))


def _strictly(shape: Any, value: Any, where: str) -> Iterator[str]:
    """What botocore itself leaves to the service: patterns, enumerations, upper bounds."""
    if shape.type_name == "structure":
        inner = [
            (m, value[name], f"{where}.{name}") for name, m in shape.members.items() if value.get(name) is not None
        ]
    elif shape.type_name == "list":
        inner = [(shape.member, item, f"{where}[{n}]") for n, item in enumerate(value)]
    elif shape.type_name == "map":
        inner = [(shape.value, item, f"{where}.{key}") for key, item in value.items()]
    else:
        inner = []
    for part in inner:
        yield from _strictly(*part)
    allowed, most, pattern = shape.metadata.get("enum"), shape.metadata.get("max"), shape.metadata.get("pattern")
    if allowed and value not in allowed:
        yield f"{where} is {value!r}, expected one of {allowed}"
    if most is not None and (value if isinstance(value, int | float) else len(value)) > most:
        yield f"{where} is above its upper bound {most}"
    if pattern and isinstance(value, str) and not _matches(pattern, value):
        yield f"{where} is {value!r}, which does not match {pattern}"


def _matches(pattern: str, value: str) -> bool:
    try:
        return re.search(pattern, value) is not None
    except re.error:  # a pattern in the words of another language (\\p{L})
        return True


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any, **__: Any) -> None:
        """Says nothing."""


@contextlib.contextmanager
def serving(app: Any, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """The URL at which a WSGI application is served over HTTP, as long as the block lasts."""
    server = make_server(host, port, app, threaded=True, request_handler=_Quiet)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@contextlib.contextmanager
def front(service: str, behind: str | None = None, *, hosts: tuple[str, ...] = ("127.0.0.1",)) -> Iterator[Front]:
    """A running ``Front``; boto3's environment points the service at it. Fails for what came in against the model.

    ``hosts``: several addresses of the same port serve it (a cluster's endpoints); ``url`` is that of the first.
    """
    made = Front(service, behind)
    name = get_service_model(service).metadata["serviceId"].replace(" ", "_").upper()
    with contextlib.ExitStack() as stack:
        made.url = stack.enter_context(serving(made, hosts[0]))
        for host in hosts[1:]:
            stack.enter_context(serving(made, host, int(made.url.rpartition(":")[2])))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv(f"AWS_ENDPOINT_URL_{name}", made.url)
        yield made
    assert not made.violations, made.violations
