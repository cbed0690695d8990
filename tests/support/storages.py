"""Object stores on this machine: Azurite (Azure Blob, the real protocol) and moto (S3). Loopback, a free port and a
temporary folder each."""

import base64
import hashlib
import hmac
import http.client
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import Missing, free_port, npm_packages, unavailable

_AZURITE = Path(__file__).parent / "azurite"
_START_SECONDS = 60.0
ACCOUNT = "devstoreaccount1"
# Azurite takes a key of ours, so that no key that looks real stands here.
KEY = base64.b64encode(b"esp-ingest tests, no secret" * 2).decode()


@dataclass(frozen=True)
class ObjectStore:
    """A running store with an empty container: ``url`` and further settings of the section ``archive``."""

    url: str
    archive: dict[str, Any]
    port: int


class Azurite:
    """Azure Blob in a process of node."""

    def __init__(self, tls: Path | None = None) -> None:
        """``tls``: a folder with cert.pem and key.pem."""
        self._tls = tls is not None
        packages = npm_packages(_AZURITE)
        self._folder = Path(tempfile.mkdtemp(prefix="esp-azurite-"))
        self.port = free_port()
        program = packages / "node_modules/azurite/dist/src/blob/main.js"
        options = ["--silent", "--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--location", str(self._folder)]
        if tls is not None:
            options += ["--cert", str(tls / "cert.pem"), "--key", str(tls / "key.pem")]
        self._process = subprocess.Popen(
            ["node", str(program), *options, "--skipApiVersionCheck", "--disableTelemetry"],
            env={"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}", "PATH": "/usr/bin:/bin:/usr/local/bin"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._request("GET", "/", {"comp": "list"})
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError("Azurite did not start") from None
                time.sleep(0.1)

    def container(self, name: str) -> ObjectStore:
        """An empty container."""
        assert self._request("PUT", f"/{name}", {"restype": "container"}) == 201
        endpoint = f"http://127.0.0.1:{self.port}/{ACCOUNT}"
        settings = {"account": ACCOUNT, "key": KEY, "endpoint": endpoint}
        return ObjectStore(f"az://{name}/some/prefix", settings, self.port)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _request(self, method: str, path: str, query: dict[str, str]) -> int:
        """A request signed with the account's key, as the Blob service asks for it (SharedKey)."""
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
        lines = [method, *[""] * 11, *(f"{name}:{value}" for name, value in headers.items())]
        lines += [f"/{ACCOUNT}/{ACCOUNT}{path}", *(f"{name}:{value}" for name, value in sorted(query.items()))]
        signed = hmac.new(base64.b64decode(KEY), "\n".join(lines).encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(signed).decode()}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        if self._tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # a certificate of the test's own
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=context)
        try:
            text = "&".join(f"{name}={value}" for name, value in query.items())
            connection.request(method, f"/{ACCOUNT}{path}?{text}", headers=headers | {"Content-Length": "0"})
            return connection.getresponse().status
        finally:
            connection.close()


@pytest.fixture(scope="session")
def azurite_server() -> Iterator[Azurite]:
    try:
        server = Azurite()
    except Missing as missing:
        unavailable(str(missing))
        raise
    yield server
    server.stop()


@pytest.fixture
def azure(azurite_server: Azurite, request: pytest.FixtureRequest) -> ObjectStore:
    """An empty container of Azure Blob."""
    return azurite_server.container(f"c{abs(hash(request.node.nodeid)):x}"[:60])


@pytest.fixture(scope="session")
def moto_server() -> Iterator[int]:
    """The port of an S3 service."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    yield port
    server.stop()


@pytest.fixture
def s3(moto_server: int, request: pytest.FixtureRequest) -> ObjectStore:
    """An empty bucket of S3."""
    name = f"b{abs(hash(request.node.nodeid)):x}"[:60]
    connection = http.client.HTTPConnection("127.0.0.1", moto_server, timeout=10)
    connection.request("PUT", f"/{name}", headers={"Host": f"127.0.0.1:{moto_server}"})
    assert connection.getresponse().status == 200
    connection.close()
    settings = {"account": "any", "key": "thing", "endpoint": f"http://127.0.0.1:{moto_server}", "region": "us-east-1"}
    return ObjectStore(f"s3://{name}/some/prefix", settings, moto_server)
