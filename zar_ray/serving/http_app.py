"""The REST API and the page, as a FastAPI application over a `Backend`."""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import re
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import zar_ray
from zar_ray.errors import ConfigError
from zar_ray.options.layers import one_line
from zar_ray.serving.admission import Admission
from zar_ray.serving.backend import Backend, Query, VideoSource
from zar_ray.serving.measures import Measures
from zar_ray.serving.openapi import STREAM_ANSWER, answers, classify_body, stream_body
from zar_ray.serving.options import ServeConfig
from zar_ray.serving.problems import RequestError
from zar_ray.serving.queries import beneath_roots, label_sets_of, query_of, split_labels
from zar_ray.serving.schema import (
    Classification,
    ClassifyParameters,
    Health,
    LabelSet,
    LabelSetList,
    MethodList,
    ModelList,
    PathRequest,
    ProblemDocument,
    Sample,
    SampleList,
    ServedMethod,
    StreamEnd,
    WindowedPathRequest,
    WindowParameters,
)
from zar_ray.serving.uploads import announced_size, read_form, read_json

logger = logging.getLogger("zar_ray.serving")

_PAGE = Path(__file__).parent / "page"
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:;"
    " connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_FORM, _JSON = "multipart/form-data", "application/json"
_LISTS = ("candidate_labels",)
_SAMPLES_SHOWN = 24
_M = TypeVar("_M", bound=BaseModel)


@dataclass(frozen=True)
class _Asked:
    """A request's video and question, read and checked."""

    video: VideoSource
    query: Query
    windows: WindowParameters


def build_app(config: ServeConfig, served: Sequence[ServedMethod], backend: Backend, replica: str = "local") -> FastAPI:
    """Makes the application.

    Args:
        config: The service's options.
        served: The methods that requests may choose.
        backend: What classifies videos.
        replica: What this process is called in the measures.

    Raises:
        ConfigError: A label set cannot be read, or the folder of samples is not there.
    """
    methods = {method.name: method for method in served}
    label_sets = label_sets_of(config)
    samples = _samples(config.samples)
    roots = (*config.roots, *((config.samples,) if config.samples is not None else ()))
    admission = Admission(config.limits)
    measures = Measures(admission, replica)
    app = FastAPI(
        title="zar-ray",
        version=zar_ray.__version__,
        description="Recognises actions in videos among any labels, tuning its prompt to each video.",
        redirect_slashes=False,
    )
    _answer_errors(app)
    app.add_middleware(_Observed, config=config, measures=measures)

    @asynccontextmanager
    async def asked(request: Request, *, windowed: bool) -> AsyncIterator[_Asked]:
        """Lets a request in, receives and checks it, and waits for its turn; all is given back when the block ends."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in (_FORM, _JSON):
            raise RequestError("unsupported-media-type", f"send {_FORM} with a video, or {_JSON} with a path")
        async with AsyncExitStack() as stack:
            stack.enter_context(admission.admitted(announced_size(request, config.limits)))
            received = 0.0
            if media_type == _JSON:
                body = await read_json(request, config.limits)
                parameters = _of_json(WindowedPathRequest if windowed else PathRequest, body)
                file = beneath_roots(parameters.path, roots)
                video = VideoSource(file.name, path=str(file))
            else:
                form = await stack.enter_async_context(read_form(request, config.limits))
                parameters = _of_form(_WindowedForm if windowed else ClassifyParameters, form.fields)
                video, received = VideoSource(form.name, content=form.content), form.seconds
            query = query_of(parameters, config, methods, label_sets, request.state.request_id, received)
            await stack.enter_async_context(admission.turn)
            yield _Asked(video, query, parameters if isinstance(parameters, WindowParameters) else WindowParameters())

    @app.post(
        "/v1/classify",
        response_model=Classification,
        responses=answers(400, 401, 413, 415, 422, 500, 503, 504),
        openapi_extra=classify_body(served),
        summary="Classify a video",
    )
    async def classify(request: Request) -> Response:
        async with asked(request, windowed=False) as one:
            result = await backend.classify(one.video, one.query)
        measures.classified(result)
        return Response(result.model_dump_json(), media_type=_JSON)

    @app.post(
        "/v1/classify:stream",
        response_class=StreamingResponse,
        responses={200: STREAM_ANSWER, **answers(400, 401, 413, 415, 422, 500, 503, 504)},
        openapi_extra=stream_body(served),
        summary="Classify a long video window by window",
    )
    async def classify_stream(request: Request) -> Response:
        stack = AsyncExitStack()
        try:
            one = await stack.enter_async_context(asked(request, windowed=True))
            results = await stack.enter_async_context(
                aclosing(backend.classify_windows(one.video, one.query, one.windows))
            )
            # What is wrong with the video as a whole is known by now, and is an error of the request.
            first = await anext(results)
        except BaseException:
            await stack.aclose()
            raise

        async def events() -> AsyncIterator[bytes]:
            count = 0
            try:
                async for window in _after(first, results):
                    measures.classified(window.result)
                    count += 1
                    yield _event("window", window)
                yield _event("end", StreamEnd(windows=count))
            except RequestError as error:
                yield _event("error", _document(error, one.query.request_id))
            except Exception:
                logger.exception("request %s failed in window %d", one.query.request_id, count)
                failure = RequestError("internal-error", "the service failed on this video; its log says why")
                yield _event("error", _document(failure, one.query.request_id))

        return _EventStream(events(), stack)

    @app.get("/v1/models", responses=answers(401, 503), summary="What is served")
    async def models() -> ModelList:
        return ModelList(models=(await backend.model(),))

    @app.get("/v1/methods", responses=answers(401), summary="The methods that requests may choose, with their options")
    async def method_list() -> MethodList:
        return MethodList(methods=tuple(served))

    @app.get("/v1/labels", responses=answers(401), summary="The label sets that requests may name")
    async def labels() -> LabelSetList:
        return LabelSetList(label_sets=tuple(LabelSet(name=name, labels=of) for name, of in label_sets.items()))

    @app.get("/v1/samples", responses=answers(401), summary="Videos to try")
    async def sample_list() -> SampleList:
        return samples

    @app.get("/healthz", summary="Whether this process answers")
    async def health() -> Health:
        return Health(status="ok")

    @app.get("/readyz", responses=answers(503), summary="Whether the weights are loaded and have been tried")
    async def ready() -> Health:
        await backend.model()
        return Health(status="ready")

    @app.get("/metrics", response_class=PlainTextResponse, responses=answers(401), summary="Measures for Prometheus")
    async def metrics() -> Response:
        return Response(measures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    pages = {file.name: file for file in sorted(_PAGE.iterdir()) if file.is_file()}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _page_file(pages["index.html"])

    @app.get("/page/{name}", include_in_schema=False)
    async def page_part(name: str) -> Response:
        if name not in pages:
            raise HTTPException(404)
        return _page_file(pages[name])

    return app


def authorised(header: str | None, hashes: Sequence[str]) -> bool:
    """Whether an Authorization header holds a token of which one of the SHA-256 hashes is.

    All hashes are compared, each in constant time, so that the answer's time tells nothing of them.
    """
    scheme, _, token = (header or "").partition(" ")
    found = hashlib.sha256(token.strip().encode()).hexdigest()
    matches = [hmac.compare_digest(found, known) for known in hashes]
    return scheme.lower() == "bearer" and any(matches)


# Kubernetes asks these, and a browser the page, before anyone could send a token.
_OPEN_ROUTES = re.compile(r"/(healthz|readyz|page/[^/]*)?")


class _Observed:
    """Gives each request its id, refuses strangers, answers what nobody foresaw, and counts and logs the answer."""

    def __init__(self, app: ASGIApp, config: ServeConfig, measures: Measures) -> None:
        self._app = app
        self._config = config
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        request = Request(scope, receive)
        sent = request.headers.get("x-request-id", "")
        request_id = request.state.request_id = sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._respond(request, observed)
        except Exception:
            logger.exception("request %s failed", request_id)
            if status:
                raise
            failure = RequestError("internal-error", "the service failed on this request; its log says why")
            await _problem(request, failure)(scope, receive, observed)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "none")
            self._measures.answered(route, status, getattr(request.state, "code", "ok"), seconds)
            logger.info("request %s %s %s %d %.3f s", request_id, request.method, route, status, seconds)

    async def _respond(self, request: Request, send: Send) -> None:
        tokens = self._config.tokens
        known = not tokens or _OPEN_ROUTES.fullmatch(request.url.path)
        if known or authorised(request.headers.get("authorization"), tokens):
            await self._app(request.scope, request.receive, send)
        else:
            refusal = _problem(request, RequestError("unauthorized", "send Authorization: Bearer TOKEN"))
            await refusal(request.scope, request.receive, send)


def _answer_errors(app: FastAPI) -> None:
    """All errors are problem documents, also those that FastAPI finds."""

    @app.exception_handler(RequestError)
    async def on_problem(request: Request, error: RequestError) -> Response:
        return _problem(request, error)

    @app.exception_handler(RequestValidationError)
    async def on_validation(request: Request, error: RequestValidationError) -> Response:
        return _problem(request, RequestError("invalid-parameters", "; ".join(one["msg"] for one in error.errors())))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        code = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "bad-request")
        response = _problem(request, RequestError(code, f"{request.method} {request.url.path[:200]}"))
        response.headers.update(error.headers or {})
        return response


def _problem(request: Request, error: RequestError) -> Response:
    request.state.code = error.code
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    document = _document(error, _id_of(request))
    return JSONResponse(document.model_dump(), error.status, headers=headers, media_type="application/problem+json")


def _id_of(request: Request) -> str:
    return getattr(request.state, "request_id", "")


def _document(error: RequestError, request_id: str) -> ProblemDocument:
    return ProblemDocument(
        title=error.title, status=error.status, code=error.code, detail=error.detail, request_id=request_id
    )


def _of_json(kind: type[_M], body: bytes) -> _M:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        if any(one["type"] == "json_invalid" for one in error.errors()):
            raise RequestError("bad-request", "the body is not JSON") from None
        raise RequestError("invalid-parameters", one_line(error)) from None


def _of_form(kind: type[_M], fields: dict[str, list[str]]) -> _M:
    values: dict[str, Any] = {}
    for name, texts in fields.items():
        if name in _LISTS:
            try:
                values[name] = split_labels(texts)
            except ConfigError as error:
                raise RequestError("invalid-parameters", f"{name}: {error}") from None
        elif len(texts) > 1:
            raise RequestError("invalid-parameters", f"{name[:80]}: is there {len(texts)} times")
        elif name == "options":
            values[name] = _object(texts[0])
        else:
            values[name] = texts[0]
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise RequestError("invalid-parameters", one_line(error)) from None


def _object(text: str) -> Any:
    """The method's options as a form has them: JSON."""
    try:
        return from_json(text)
    except ValueError:
        raise RequestError("invalid-parameters", 'options: is no JSON object, as {"steps": 2} is') from None


class _WindowedForm(ClassifyParameters, WindowParameters):
    """A long video's form."""


class _EventStream(StreamingResponse):
    """Server-sent events; gives back what the request holds also where its client is gone before the first of them."""

    def __init__(self, events: AsyncIterator[bytes], held: AsyncExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def _after(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for one in rest:
        yield one


def _event(name: str, data: BaseModel) -> bytes:
    return f"event: {name}\ndata: {data.model_dump_json()}\n\n".encode()


def _page_file(file: Path) -> Response:
    return FileResponse(
        file,
        headers={
            "Content-Security-Policy": _PAGE_POLICY,
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
        },
    )


def _samples(folder: Path | None) -> SampleList:
    if folder is None:
        return SampleList(samples=())
    if not folder.is_dir():
        raise ConfigError(f"samples: {folder} is not a folder; make it, or leave samples out")
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    shown = files[:: max(1, math.ceil(len(files) / _SAMPLES_SHOWN))]
    names = [file.relative_to(folder) for file in shown]
    return SampleList(samples=tuple(Sample(name=str(name.with_suffix("")), path=str(name)) for name in names))
