"""The REST API and the page, as a FastAPI application over a `Backend`."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import zar_ray
from zar_ray.errors import ConfigError
from zar_ray.options.layers import one_line
from zar_ray.serving import seeds
from zar_ray.serving.access import refusal
from zar_ray.serving.admission import Admission
from zar_ray.serving.backend import Backend, Query, VideoSource
from zar_ray.serving.logs import logger
from zar_ray.serving.measures import Measures
from zar_ray.serving.openapi import STREAM_ANSWER, answers, request_body
from zar_ray.serving.options import LimitConfig, ServeConfig
from zar_ray.serving.problems import RequestError, problem_of
from zar_ray.serving.proxy import REQUEST_ID
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
    WindowedParameters,
    WindowedPathRequest,
    WindowParameters,
)
from zar_ray.serving.uploads import announced_size, read_form, read_json
from zar_ray.untrusted import storable

_PAGE = Path(__file__).parent / "page"
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:;"
    " connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_FORM, _JSON = "multipart/form-data", "application/json"
_SAMPLES_SHOWN = 24
_MOST_FIELDS = 64
_LONGEST_DETAIL = 1000
_M = TypeVar("_M", bound=BaseModel)
_Form = TypeVar("_Form", bound=ClassifyParameters)
_OnServer = TypeVar("_OnServer", bound=PathRequest)


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
    admission = Admission(config.limits)
    measures = Measures(admission, replica)
    app = FastAPIOffline(
        redoc_url=None,
        title="zar-ray",
        version=zar_ray.__version__,
        description="Recognises actions in videos among any labels, tuning its prompt to each video.",
        redirect_slashes=False,
    )
    _answer_errors(app)
    if config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    app.add_middleware(_Observed, config=config, measures=measures)

    @asynccontextmanager
    async def asked(
        request: Request, of_form: type[_Form], of_json: type[_OnServer]
    ) -> AsyncIterator[tuple[VideoSource, Query, _Form | _OnServer]]:
        """Lets a request in, receives and checks it, and waits for its turn; all is given back when the block ends."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in (_FORM, _JSON):
            raise RequestError("unsupported-media-type", f"send {_FORM} with a video, or {_JSON} with a path")
        stream = of_form is WindowedParameters
        async with AsyncExitStack() as stack:
            stack.enter_context(admission.admitted(announced_size(request, config.limits), stream))
            received = 0.0
            if media_type == _JSON:
                body = await read_json(request, config.limits)
                parameters = _validated(of_json, _from_json(body, "bad-request", "the body is not JSON"))
                file = beneath_roots(parameters.path, config.folders)
                video = VideoSource(storable(file.name), str(file))
            else:
                form = await stack.enter_async_context(read_form(request, config.limits))
                parameters = _validated(of_form, _values(form.fields, config.limits))
                video, received = VideoSource(form.name, form.content), form.seconds
            query = query_of(parameters, config, methods, label_sets, request.state.request_id, received)
            if not stream:
                await stack.enter_async_context(admission.turn)
            yield video, query, parameters

    @app.post(
        "/v1/classify",
        response_model=Classification,
        responses=answers(400, 401, 403, 413, 415, 422, 500, 503, 504),
        openapi_extra=request_body(served, ClassifyParameters, PathRequest),
        summary="Classify a video",
    )
    async def classify(request: Request) -> Response:
        async with asked(request, ClassifyParameters, PathRequest) as (video, query, _):
            result = await seeds.classify(backend, video, query)
        measures.classified(result)
        return Response(result.model_dump_json(), media_type=_JSON)

    @app.post(
        "/v1/classify:stream",
        response_class=StreamingResponse,
        responses={200: STREAM_ANSWER, **answers(400, 401, 403, 413, 415, 422, 500, 503, 504)},
        openapi_extra=request_body(served, WindowedParameters, WindowedPathRequest),
        summary="Classify a long video window by window",
    )
    async def classify_stream(request: Request) -> Response:
        async with AsyncExitStack() as stack:
            video, query, said = await stack.enter_async_context(
                asked(request, WindowedParameters, WindowedPathRequest)
            )
            windows = WindowParameters(window=said.window, stride=said.stride)
            results = await stack.enter_async_context(aclosing(backend.classify_windows(video, query, windows)))
            # What is wrong with the video as a whole is known by now, and is an error of the request.
            first = await anext(results)
            held = stack.pop_all()

        async def events() -> AsyncIterator[bytes]:
            count, window = 0, first
            request.state.code = _CLIENT_GONE
            try:
                while window is not None:
                    measures.classified(window.result)
                    count += 1
                    yield _event("window", window)
                    window = await anext(results, None)
            except RequestError as error:
                logger.warning("request %s window %d: %s", query.request_id, count, error.code)
                failure = error
            except Exception:
                logger.exception("request %s failed in window %d", query.request_id, count)
                failure = RequestError("internal-error")
            else:
                request.state.code = "ok"
                yield _event("end", StreamEnd(windows=count))
                return
            request.state.code = failure.code
            yield _event("error", ProblemDocument(**problem_of(failure, query.request_id)))

        return _EventStream(events(), held)

    @app.get("/v1/models", responses=answers(401, 403, 503), summary="What is served")
    async def models() -> ModelList:
        return ModelList(models=(await backend.model(),))

    @app.get("/v1/methods", responses=answers(401, 403), summary="The methods and their options")
    async def method_list() -> MethodList:
        return MethodList(methods=tuple(served))

    @app.get("/v1/labels", responses=answers(401, 403), summary="The label sets that requests may name")
    async def labels() -> LabelSetList:
        return LabelSetList(label_sets=tuple(LabelSet(name=name, labels=of) for name, of in label_sets.items()))

    @app.get("/v1/samples", responses=answers(401, 403), summary="Videos to try")
    async def sample_list() -> SampleList:
        return samples

    @app.get("/healthz", summary="Whether this process answers")
    async def health() -> Health:
        return Health(status="ok")

    @app.get("/readyz", responses=answers(503), summary="Whether the weights are loaded and have been tried")
    async def ready() -> Health:
        await backend.model()
        return Health(status="ready")

    @app.get("/metrics", response_class=PlainTextResponse, responses=answers(401, 403), summary="For Prometheus")
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


# As nginx has it, for a request whose client left before there was an answer.
_GONE_STATUS, _CLIENT_GONE = 499, "client-gone"


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
        bare = scope["method"] == "HEAD"
        if bare:
            scope = {**scope, "method": "GET"}
        request = Request(scope, receive)
        sent = request.headers.get("x-request-id", "")
        request_id = request.state.request_id = sent if REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            elif bare:
                message = {**message, "body": b""}
            await send(message)

        try:
            refused = refusal(request, self._config)
            app = self._app if refused is None else _problem(request, refused)
            await app(scope, receive, observed)
        except Exception:
            logger.exception("request %s failed", request_id)
            if status:
                raise
            await _problem(request, RequestError("internal-error"))(scope, receive, observed)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "none")
            code = getattr(request.state, "code", "ok") if status else _CLIENT_GONE
            status = status or _GONE_STATUS
            self._measures.answered(route, status, code, seconds)
            logger.info("request %s %s %s %d %.3f s", request_id, request.method, route, status, seconds)


def _answer_errors(app: FastAPI) -> None:
    """All errors are problem documents, also those of addresses; FastAPI itself looks at no parameters."""

    @app.exception_handler(RequestError)
    async def on_problem(request: Request, error: RequestError) -> Response:
        return _problem(request, error)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        code = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "bad-request")
        response = _problem(request, RequestError(code, f"{request.method} {request.scope['path'][:200]}"))
        response.headers.update(error.headers or {})
        return response


def _problem(request: Request, error: RequestError) -> Response:
    request.state.code = error.code
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    document = problem_of(error, request.state.request_id)
    return JSONResponse(document, error.status, headers=headers, media_type="application/problem+json")


def _validated(kind: type[_M], values: Any) -> _M:
    if isinstance(values, dict) and len(values) > _MOST_FIELDS:
        raise RequestError("invalid-parameters", f"{len(values)} parameters are more than there are")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise RequestError("invalid-parameters", one_line(error)[:_LONGEST_DETAIL]) from None


def _from_json(text: str | bytes, code: str, otherwise: str) -> Any:
    try:
        return from_json(text)
    except ValueError:
        raise RequestError(code, otherwise) from None


def _values(fields: dict[str, list[str]], limits: LimitConfig) -> dict[str, Any]:
    """A form's fields as JSON would have them."""
    values: dict[str, Any] = {}
    for name, texts in fields.items():
        if name == "candidate_labels":
            values[name] = split_labels(texts, limits)
        elif name == "seeds":
            values[name] = texts
        elif len(texts) > 1:
            raise RequestError("invalid-parameters", f"{name[:80]}: is there {len(texts)} times")
        elif name == "options":
            no_object = 'options: is no JSON object, as {"steps": 2} is'
            values[name] = _from_json(texts[0], "invalid-parameters", no_object)
        else:
            values[name] = texts[0]
    return values


class _EventStream(StreamingResponse):
    """Server-sent events; gives back what the request holds also where its client is gone before the first of them."""

    def __init__(self, events: AsyncIterator[bytes], held: AsyncExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


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
    # A name that is no text could not be asked for.
    names = [name for name in (file.relative_to(folder) for file in files) if storable(str(name)) == str(name)]
    names = names[:: max(1, math.ceil(len(names) / _SAMPLES_SHOWN))]
    return SampleList(samples=tuple(Sample(name=str(name.with_suffix("")), path=str(name)) for name in names))
