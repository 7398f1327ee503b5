"""The FastAPI application: every route of the Hub over one HubState."""

import errno
import re
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from hubquant.hub.local.answers import Refusal, repo_not_found
from hubquant.hub.local.routes import (
    access,
    account,
    collections,
    commit,
    discussions,
    hooks,
    info,
    lfs,
    pages,
    refs,
    repos,
    resolve,
    tree,
    webhooks,
)
from hubquant.hub.local.routes.common import get_caller
from hubquant.hub.local.state import HubState

ROUTERS = (account, repos, access, info, tree, refs, commit, discussions, lfs, resolve, collections, webhooks, pages)
REPO_ADDRESS = re.compile(r"/api/(models|datasets|spaces|kernels)/|/[^/]+/resolve/")


def refusal_response(refusal: Refusal) -> JSONResponse:
    headers = {"X-Error-Message": refusal.message.encode("ascii", "replace").decode().replace("\n", " "), **refusal.headers}
    if refusal.code is not None:
        headers["X-Error-Code"] = refusal.code
    return JSONResponse(refusal.body, refusal.status, headers)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    return refusal_response(error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return refusal_response(Refusal(400, f"{where}: {first['msg']}"))


async def _no_such_route(request: Request, error: Exception) -> JSONResponse:
    """The usual reason is a repo id of one word, such as gpt2, which this Hub does not have."""
    assert isinstance(error, HTTPException)
    refusal = Refusal(error.status_code, str(error.detail))
    if error.status_code == HTTPStatus.NOT_FOUND and REPO_ADDRESS.match(request.url.path):
        try:
            refusal = repo_not_found(await get_caller(request))
        except Refusal as invalid_token:
            refusal = invalid_token
    return refusal_response(refusal)


async def _nobody_left(request: Request, error: Exception) -> Response:
    """The client closed the connection in the middle of its request."""
    return Response(status_code=499)


async def _os_error(request: Request, error: Exception) -> JSONResponse:
    """A full disk is the caller's business; anything else is a bug."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return refusal_response(Refusal(507, "The disk of this Hub is full"))
    raise error


def create_app(hub: HubState, test_hooks: bool = False) -> FastAPI:
    app = FastAPI(title="hubquant local Hub", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.hub = hub
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_such_route)
    app.add_exception_handler(ClientDisconnect, _nobody_left)
    app.add_exception_handler(OSError, _os_error)
    for module in (*((hooks,) if test_hooks else ()), *ROUTERS):
        app.include_router(module.router)
    return app
