"""What every route needs: the Hub, the caller, the repo named in the address."""

import json
from typing import Annotated, Any
from urllib.parse import unquote, urlencode

from fastapi import Depends, Path, Query, Request
from pydantic import AfterValidator
from starlette.convertors import Convertor, register_url_convertor

from hubquant.hub.local.accounts import Caller
from hubquant.hub.local.answers import bad_request, invalid_token
from hubquant.hub.local.repos import TYPES
from hubquant.hub.local.state import HubState

JSON_LIMIT_BYTES = 16 * 2**20


class KindConvertor(Convertor[str]):
    """models | datasets | spaces | kernels in an address; the route gets the type without the s."""

    regex = "|".join(f"{type_}s" for type_ in TYPES)

    def convert(self, value: str) -> str:
        return value.removesuffix("s")

    def to_string(self, value: str) -> str:
        return f"{value}s"


register_url_convertor("kind", KindConvertor())

REPO = "/api/{kind:kind}/{ns}/{name}"


def get_hub(request: Request) -> HubState:
    hub: HubState = request.app.state.hub
    return hub


async def get_caller(request: Request) -> Caller:
    """Raises Refusal 401 for a token that nobody has."""
    header = request.headers.get("authorization", "")
    scheme, _, token = header.partition(" ")
    if not header:
        return Caller()
    caller = get_hub(request).accounts.caller(token.strip()) if scheme.lower() == "bearer" else None
    if caller is None:
        raise invalid_token()
    return caller


async def hub_dependency(request: Request) -> HubState:
    return get_hub(request)


async def base_url(request: Request) -> str:
    """The Hub's address as this caller wrote it: clients compare the addresses in answers with their own endpoint."""
    host = request.headers.get("host")
    return f"http://{host}" if host else get_hub(request).url


class Page:
    """What a paginated request asks for: at most `size` records after `cursor`."""

    def __init__(self, request: Request, base: str, size: int, cursor: str | None) -> None:
        self._request = request
        self._base = base
        self.size = size
        self.cursor = cursor

    def headers(self, following: str | None) -> dict[str, str] | None:
        """The Link to the next page, whose cursor is `following`."""
        if following is None:
            return None
        pairs = [(key, value) for key, value in self._request.query_params.multi_items() if key != "cursor"]
        path = self._request.scope["raw_path"].decode("ascii")
        return {"Link": f'<{self._base}{path}?{urlencode([*pairs, ("cursor", following)])}>; rel="next"'}


async def page_wanted(request: Request, cursor: str | None = None, limit: Annotated[int | None, Query(ge=1)] = None) -> Page:
    most = get_hub(request).page_size
    return Page(request, await base_url(request), min(limit or most, most), cursor)


async def repo_address(kind: str, ns: str, name: str) -> tuple[str, str]:
    return kind, f"{ns}/{name}"


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object in the body; {} for an empty or null one. Raises Refusal 400 for anything else."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > JSON_LIMIT_BYTES:
            raise bad_request(f"The body is longer than {JSON_LIMIT_BYTES} bytes")
    try:
        value = json.loads(body or b"{}")
    except ValueError as error:
        raise bad_request(f"The body is not JSON: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_request("The body must be a JSON object")
    return value


Hub = Annotated[HubState, Depends(hub_dependency)]
Who = Annotated[Caller, Depends(get_caller)]
BaseUrl = Annotated[str, Depends(base_url)]
Wanted = Annotated[Page, Depends(page_wanted)]
Address = Annotated[tuple[str, str], Depends(repo_address)]  # type and id
Body = Annotated[dict[str, Any], Depends(json_body)]
Segment = Annotated[str, Path(), AfterValidator(unquote)]


def text_field(body: dict[str, Any], key: str) -> str:
    """A required string. Raises Refusal 400 naming the key."""
    value = body.get(key)
    if not isinstance(value, str) or not value.strip():
        raise bad_request(f'"{key}" must be a string that is not empty')
    return value
