"""Everything under /api: accounts, repositories, their info and trees, refs and commits."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
from typing import Any

from aiohttp import web
from hub.accounts import ACCOUNT, HUB, check_seen, check_write, commit, repository
from hub.store import Blob, Commit, HubError, Repo, front_matter

routes = web.RouteTableDef()
REPO = "/api/{kind:models|datasets|spaces}/{namespace}/{name}"


@routes.get("/api/whoami-v2")
async def whoami(request: web.Request) -> web.Response:
    if not request[ACCOUNT]:
        raise HubError(401, "Invalid username or password.")
    return web.json_response(request[ACCOUNT].whoami())


@routes.post("/api/validate-yaml")
async def validate_yaml(request: web.Request) -> web.Response:
    content = (await request.json())["content"]
    try:
        found = front_matter(content)
    except HubError as error:
        return web.json_response({"errors": [{"message": error.message}], "warnings": []}, status=400)
    warnings = [] if found else [{"message": "empty or missing yaml metadata in repo card"}]
    return web.json_response({"errors": [], "warnings": warnings})


# Repositories.


@routes.post("/api/repos/create")
async def create(request: web.Request) -> web.Response:
    asked, hub = await request.json(), request.app[HUB]
    kind, id = _named(request, asked)
    check_write(id.split("/")[0], request[ACCOUNT])
    there = hub.store.find(kind, id)
    repo = there or hub.store.create(kind, id, private=asked.get("visibility") == "private", sdk=asked.get("sdk"))
    told = {"error": f"You already created this {kind} repo"} if there else {}
    return web.json_response({"url": f"{hub.url}/{_page(repo)}", "name": repo.id, **told}, status=409 if there else 200)


@routes.delete("/api/repos/delete")
async def delete(request: web.Request) -> web.Response:
    store = request.app[HUB].store
    repo = check_seen(store.find(*_named(request, await request.json())), request[ACCOUNT])
    check_write(repo.namespace, request[ACCOUNT])
    store.delete(repo)
    return web.Response()


@routes.post("/api/repos/move")
async def move(request: web.Request) -> web.Response:
    asked, store = await request.json(), request.app[HUB].store
    repo = check_seen(store.find(asked["type"], asked["fromRepo"]), request[ACCOUNT])
    for namespace in (repo.namespace, asked["toRepo"].split("/")[0]):
        check_write(namespace, request[ACCOUNT])
    store.move(repo, asked["toRepo"])
    return web.Response()


@routes.put(REPO + "/settings")
async def settings(request: web.Request) -> web.Response:
    repo, asked = repository(request, write=True), await request.json()
    repo.gated = asked.get("gated", repo.gated)
    if "visibility" in asked:
        repo.private = asked["visibility"] == "private"
    return web.json_response({"private": repo.private, "gated": repo.gated})


@routes.get(REPO + "/auth-check")
async def may_read(request: web.Request) -> web.Response:
    repository(request, files=True)
    return web.Response()


@routes.get(REPO + "/auth-check/write")
async def may_write(request: web.Request) -> web.Response:
    repository(request, write=True)
    return web.Response()


def _named(request: web.Request, asked: dict[str, Any]) -> tuple[str, str]:
    """Kind and id of the repository in a body; in the asker's own namespace where none is named."""
    own = request[ACCOUNT].name if request[ACCOUNT] else ""
    return asked.get("type") or "model", f"{asked.get('organization') or own}/{asked['name']}"


def _page(repo: Repo) -> str:
    return repo.id if repo.kind == "model" else f"{repo.kind}s/{repo.id}"


# Their info.


@routes.get("/api/{kind:models|datasets|spaces}")
async def listing(request: web.Request) -> web.Response:
    query, account = request.query, request[ACCOUNT]
    found = [
        _info(repo, repo.head)
        for repo in request.app[HUB].store
        if f"{repo.kind}s" == request.match_info["kind"]
        and (not repo.private or (account and account.may_see(repo.namespace)))
        and query.get("author") in (None, repo.namespace)
        and query.get("search", "").lower() in repo.id.lower()
    ]
    return _paged(request, [info for info in found if set(query.getall("filter", [])) <= set(info["tags"])])


@routes.get(REPO)
@routes.get(REPO + "/revision/{revision}")
async def info(request: web.Request) -> web.Response:
    repo = repository(request)
    return web.json_response(_info(repo, commit(request, repo), blobs="blobs" in request.query))


def _info(repo: Repo, at: Commit, blobs: bool = False) -> dict[str, Any]:
    card = at.card
    tags = list(card.get("tags") or [])
    for key in ("license", "language", "size_categories", "task_categories"):
        tags += [f"{key}:{value}" for value in ([card[key]] if isinstance(card.get(key), str) else card.get(key) or [])]
    return {
        "_id": hashlib.md5(repo.id.encode()).hexdigest()[:24], "id": repo.id, "author": repo.namespace, "sha": at.oid,
        "lastModified": at.date, "createdAt": list(repo.head.history)[-1].date, "private": repo.private,
        "gated": repo.gated, "disabled": False, "downloads": 0, "likes": 0, "tags": tags, "cardData": card,
        "sdk": repo.sdk, "siblings": [_sibling(path, at.files[path], blobs) for path in sorted(at.files)],
    }  # fmt: skip


def _sibling(path: str, blob: Blob, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    return {"rfilename": path, "size": len(blob.data), "blobId": blob.oid, **_large(blob, "sha256")}


def _large(blob: Blob, oid: str) -> dict[str, Any]:
    """What is said of a large file, its sha256 under the name `oid`."""
    told = {oid: blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
    return {"lfs": told} if blob.lfs else {}


@routes.get(REPO + "/tree/{revision}")
@routes.get(REPO + "/tree/{revision}/{path:.+}")
async def tree(request: web.Request) -> web.Response:
    found, path = commit(request, repository(request)), request.match_info.get("path", "").strip("/")
    prefix = f"{path}/" if path else ""
    inside = sorted(name for name in _entries(found) if name.startswith(prefix))
    if path and not inside:
        raise HubError(404, f"{path} does not exist on this revision", "EntryNotFound")
    if request.query.get("recursive", "false").lower() not in ("true", "1"):
        inside = [name for name in inside if "/" not in name[len(prefix) :]]
    expand = request.query.get("expand", "false").lower() in ("true", "1")
    return _paged(request, [_entry(found, name, expand) for name in inside])


@routes.post(REPO + "/paths-info/{revision}")
async def paths_info(request: web.Request) -> web.Response:
    found, asked = commit(request, repository(request)), await request.post()
    expand, there = str(asked.get("expand")).lower() == "true", _entries(found)
    paths = [str(path).strip("/") for path in asked.getall("paths", [])]
    return web.json_response([_entry(found, path, expand) for path in paths if path in there])


def _entries(at: Commit) -> set[str]:
    """Every file, and every folder that has one in it."""
    cuts = (path.split("/") for path in at.files)
    return {"/".join(names[:n]) for names in cuts for n in range(1, len(names) + 1)}


def _entry(at: Commit, path: str, expand: bool) -> dict[str, Any]:
    if path not in at.files:
        return {"type": "directory", "oid": hashlib.sha1(f"{at.oid} {path}".encode()).hexdigest(), "size": 0,
                "path": path}  # fmt: skip
    blob = at.files[path]
    entry = {"type": "file", "oid": blob.oid, "size": len(blob.data), "path": path, **_large(blob, "oid")}
    if expand:
        last = at.last_to_change(path)
        entry["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
    return entry


def _paged(request: web.Request, items: list[Any]) -> web.Response:
    start, size = int(request.query.get("cursor", 0)), request.app[HUB].page_size
    later = request.url.update_query(cursor=str(start + size))
    headers = {"Link": f'<{later}>; rel="next"'} if start + size < len(items) else {}
    return web.json_response(items[start : start + size], headers=headers)


# Refs and commits.


@routes.get(REPO + "/refs")
async def refs(request: web.Request) -> web.Response:
    repo = repository(request)
    answer: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
    for kind, named, prefix in (("branches", repo.branches, "heads"), ("tags", repo.tags, "tags")):
        for name, at in named.items():
            answer[kind].append({"name": name, "ref": f"refs/{prefix}/{name}", "targetCommit": at.oid})
    return web.json_response(answer)


@routes.get(REPO + "/commits/{revision}")
async def commits(request: web.Request) -> web.Response:
    history = commit(request, repository(request)).history
    return _paged(request, [{"id": at.oid, "title": at.title, "message": at.message, "date": at.date,
                             "authors": [{"user": at.author}]} for at in history])  # fmt: skip


@routes.post(REPO + "/branch/{new}")
@routes.post(REPO + "/tag/{revision}")
async def create_ref(request: web.Request) -> web.Response:
    repo, asked = repository(request, write=True), await request.json()
    branch = request.match_info.get("new")
    named, name = (repo.branches, branch) if branch else (repo.tags, asked["tag"])
    target = repo.at(asked.get("startingPoint", "main") if branch else request.match_info["revision"])
    if name in named:
        raise HubError(409, f"Reference already exists: {name}")
    named[name] = target
    return web.Response()


@routes.delete(REPO + "/{what:branch|tag}/{ref}")
async def delete_ref(request: web.Request) -> web.Response:
    repo, ref = repository(request, write=True), request.match_info["ref"]
    named = repo.branches if request.match_info["what"] == "branch" else repo.tags
    if named.pop(ref, None) is None:
        raise HubError(404, f"Reference does not exist: {ref}", "RevisionNotFound")
    return web.Response()


@routes.post(REPO + "/preupload/{revision}")
async def preupload(request: web.Request) -> web.Response:
    """How each file is to be uploaded, and what the Hub has of it."""
    repo, asked, hub = repository(request, write=True), await request.json(), request.app[HUB]
    there = commit(request, repo).files
    ignore = asked.get("gitIgnore") or (there[".gitignore"].data.decode() if ".gitignore" in there else "")
    patterns = [line.strip().strip("/") for line in ignore.splitlines() if line.strip() and not line.startswith("#")]
    answers = []
    for file in asked["files"]:
        path, names = file["path"], file["path"].split("/")
        mode = repo.upload_mode(path, file["size"], base64.b64decode(file["sample"]), hub.large_from)
        ignored = any(fnmatch.fnmatch(name, pattern) for name in [path, *names] for pattern in patterns)
        oid = there[path].etag if path in there else None
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": ignored, "oid": oid})
    return web.json_response({"files": answers})


@routes.post(REPO + "/commit/{revision}")
async def add_commit(request: web.Request) -> web.Response:
    repo, hub, branch = repository(request, write=True), request.app[HUB], request.match_info["revision"]
    if "create_pr" in request.query:
        raise HubError(403, "Pull requests are not part of this Hub")
    lines = [json.loads(line) for line in (await request.read()).splitlines()]
    (header,) = [line["value"] for line in lines if line["key"] == "header"]

    def edit(files: dict[str, Blob]) -> None:
        for line in lines:
            _apply(repo, files, line["key"], line["value"], hub.large_from)

    new = repo.commit(branch, edit, header["summary"], header.get("description", ""), request[ACCOUNT].name,
                      header.get("parentCommit"))  # fmt: skip
    url = f"{hub.url}/{_page(repo)}/commit/{new.oid}"
    return web.json_response({"success": True, "commitOid": new.oid, "commitUrl": url})


def _apply(repo: Repo, files: dict[str, Blob], key: str, value: dict[str, Any], large_from: int) -> None:
    """Carry out one line of a commit. Raises HubError where it cannot be."""
    path = value.get("path", "")
    if key == "file":
        data = base64.b64decode(value["content"])
        if repo.upload_mode(path, len(data), data[:8000], large_from) == "lfs" and data:
            raise HubError(400, f"Your push was rejected because it contains large or binary files: {path}")
        files[path] = Blob(data)
        if path == "README.md":
            front_matter(data.decode())
    elif key == "lfsFile":
        if value["oid"] not in repo.large:
            raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path}")
        files[path] = Blob(repo.large[value["oid"]], lfs=True)
    elif key in ("deletedFile", "deletedFolder"):
        gone = [path] if key == "deletedFile" else [name for name in files if name.startswith(path.rstrip("/") + "/")]
        if not gone or gone[0] not in files:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del files[name]
