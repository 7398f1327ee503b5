"""The FastAPI application: every route of the Hub over one HubState."""

import errno
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from hubquant.hub.local.answers import Refusal
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
    """An address that leads nowhere is most often a repo id of one word, which this Hub does not have."""
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        anonymous = (await get_caller(request)).anonymous
        return refusal_response(Refusal(401 if anonymous else 404, "Repository not found", "RepoNotFound"))
    return refusal_response(Refusal(error.status_code, str(error.detail)))


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
    app.add_exception_handler(OSError, _os_error)
    for module in (*((hooks,) if test_hooks else ()), *ROUTERS):
        app.include_router(module.router)
    return app
