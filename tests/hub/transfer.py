"""Files on their way: large ones up (git LFS's batch API and what it points to), all of them down."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from aiohttp import web
from hub.accounts import HUB, commit, repository
from hub.store import HubError, Repo

routes = web.RouteTableDef()
OBJECT = "/lfs/{kind}/{namespace}/{name}/{oid}"


@routes.post("/{namespace}/{name}.git/info/lfs/objects/batch")
@routes.post("/{kind:datasets|spaces}/{namespace}/{name}.git/info/lfs/objects/batch")
async def batch(request: web.Request) -> web.Response:
    repo = repository(request, write=True)
    objects = [_instructions(request, repo, wanted) for wanted in (await request.json())["objects"]]
    return web.json_response({"transfer": "basic", "objects": objects})


def _instructions(request: web.Request, repo: Repo, wanted: dict[str, Any]) -> dict[str, Any]:
    """How one large file is to be uploaded; nothing to do where its content is there already."""
    oid, size = wanted["oid"], wanted["size"]
    if oid in repo.large:
        return {"oid": oid, "size": size}
    hub = request.app[HUB]
    url = f"{hub.url}/lfs/{repo.kind}s/{repo.id}/{oid}"
    actions: dict[str, Any] = {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}
    if size > hub.part_size:
        parts = range(1, math.ceil(size / hub.part_size) + 1)
        actions["upload"]["header"] = {"chunk_size": str(hub.part_size), **{str(n): f"{url}/{n}" for n in parts}}
    return {"oid": oid, "size": size, "authenticated": True, "actions": actions}


def _known(request: web.Request) -> tuple[Repo, str]:
    """The repository and the object's name. Uploads carry no token: as on the Hub, the address is the permission."""
    part = request.match_info
    repo = request.app[HUB].store.find(part["kind"].removesuffix("s"), f"{part['namespace']}/{part['name']}")
    if not repo:
        raise HubError(404, "Repository not found", "RepoNotFound")
    return repo, part["oid"]


def _keep(repo: Repo, oid: str, data: bytes) -> None:
    if hashlib.sha256(data).hexdigest() != oid:
        raise HubError(400, "The content is not what its sha256 says")
    repo.large[oid] = data


@routes.put(OBJECT)
async def upload(request: web.Request) -> web.Response:
    repo, oid = _known(request)
    _keep(repo, oid, await request.read())
    return web.Response()


@routes.put(OBJECT + r"/{part:\d+}")
async def upload_part(request: web.Request) -> web.Response:
    repo, oid = _known(request)
    data = await request.read()
    repo.parts[oid, int(request.match_info["part"])] = data
    return web.Response(headers={"ETag": f'"{hashlib.md5(data).hexdigest()}"'})


@routes.post(OBJECT)
async def complete(request: web.Request) -> web.Response:
    repo, oid = _known(request)
    numbers = [part["partNumber"] for part in (await request.json())["parts"]]
    _keep(repo, oid, b"".join(repo.parts.pop((oid, number)) for number in numbers))
    return web.Response()


@routes.post(OBJECT + "/verify")
async def verify(request: web.Request) -> web.Response:
    repo, (oid, size) = repository(request, write=True), map((await request.json()).get, ("oid", "size"))
    if len(repo.large.get(oid, b"")) != size:
        raise HubError(404, f"{oid} was not uploaded whole")
    return web.Response()


@routes.get("/{namespace}/{name}/resolve/{revision}/{path:.+}")
@routes.get("/{kind:datasets|spaces}/{namespace}/{name}/resolve/{revision}/{path:.+}")
async def resolve(request: web.Request) -> web.Response:
    repo, path = repository(request, files=True), request.match_info["path"]
    found = commit(request, repo)
    headers = {"X-Repo-Commit": found.oid, "Accept-Ranges": "bytes"}
    if path not in found.files:
        error = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        return web.Response(status=404, headers={**headers, **error}, text="Entry not found")
    blob = found.files[path]
    headers["ETag"] = f'"{blob.etag}"'
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
    if "Range" not in request.headers or request.method == "HEAD":
        return web.Response(body=blob.data, headers=headers, content_type="application/octet-stream")
    start, stop, _ = request.http_range.indices(len(blob.data))
    if start >= stop:
        return web.Response(status=416, headers={"Content-Range": f"bytes */{len(blob.data)}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(blob.data)}"
    return web.Response(status=206, body=blob.data[start:stop], headers=headers)
