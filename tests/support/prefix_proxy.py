"""A reverse proxy as people put one in front of the API: it serves it under a path, and takes that path off."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from tests.support.waiting import until


@contextmanager
def served_under(prefix: str, upstream: str, port: int) -> Iterator[str]:
    """The API at ``upstream`` under ``prefix``, on ``port`` of loopback; gives its address. What does not begin with
    ``prefix`` is 404."""
    config = uvicorn.Config(_proxy(prefix, upstream), host="127.0.0.1", port=port, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="prefix-proxy")
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{port}{prefix}"
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(10)
        assert not thread.is_alive()


def _proxy(prefix: str, upstream: str) -> Any:
    async def proxy(scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope["raw_path"].decode()
        if not path.startswith(f"{prefix}/"):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body"})
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        query = scope["query_string"].decode()
        address = upstream + path.removeprefix(prefix) + (f"?{query}" if query else "")
        async with (
            httpx.AsyncClient(trust_env=False, timeout=None) as client,
            client.stream(scope["method"], address, headers=scope["headers"], content=body) as answer,
        ):
            await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.headers.raw})
            async for piece in answer.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})

    return proxy
