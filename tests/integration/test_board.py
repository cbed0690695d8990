"""The board for Grafana against a real Prometheus."""

import contextlib
import json
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from esp_ingest.service.metrics import ApiMetrics, LifecycleMetrics, Metrics
from tests.support.databases import free_port
from tests.support.shipped import expressions, linter, metric_names


class _Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        sets = {"/daemon": Metrics, "/api": ApiMetrics, "/lifecycle": LifecycleMetrics}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sets[self.path]().render())

    def log_message(self, *_: object) -> None:
        pass


def test_each_query_of_the_board_runs_in_a_real_prometheus(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    target = f"127.0.0.1:{server.server_port}"
    jobs = [
        {"job_name": name, "metrics_path": f"/{name}", "static_configs": [{"targets": [target]}]}
        for name in ("daemon", "api", "lifecycle")
    ]
    (tmp_path / "prometheus.yml").write_text(
        yaml.safe_dump({"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs})
    )
    port = free_port()
    process = subprocess.Popen(
        [
            linter("prometheus", "prometheus"),
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(expression: str) -> list[Any]:
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{query}", timeout=10) as answer:
            found: list[Any] = json.load(answer)["data"]["result"]
        return found

    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                if len(ask("count_over_time(esp_ingest_build_info[1m]) >= 2")) == 3:
                    break
            assert time.monotonic() < deadline, "nothing was scraped"
            time.sleep(0.1)
        # Series that their owner makes, with labels that are not known from the start.
        later = {
            info.name
            for each in (Metrics().catalogue, LifecycleMetrics().catalogue)
            for info in each
            if set(info.labels) & {"broker", "certificate", "diagnosis", "loop", "job"}
        }
        for expression in expressions():
            asked = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
            found = ask(asked)
            if not metric_names(expression) & later and "histogram_quantile" not in expression:
                assert found, f"no data: {asked}"
    finally:
        process.terminate()
        process.wait(10)
        server.shutdown()
        server.server_close()
