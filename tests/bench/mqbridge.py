"""mq-bridge (Rust, from pip) as the peer: MQTT in, PostgreSQL out by bulk COPY.

    python tests/bench/mqbridge.py --port 1883 --dsn postgresql://… --user U --password P

It is run by file name, in whichever environment has mq-bridge, and imports nothing of ours. What it does for a message:
parse the JSON, take the scalar fields named below, and append a line to a text COPY of up to ``--batch`` messages;
acknowledge after the COPY has finished. It validates nothing, keeps no rejects, knows no duplicates (COPY has no ON
CONFLICT), does not split an array into rows, and cannot write received_at (the bench gives that column DEFAULT now()).
"""

import argparse
import logging
import signal
import threading

import mq_bridge

_FIELDS = (
    "well_id",
    "timestamp",
    "flow_rate",
    "pip",
    "motor_current",
    "motor_temp",
    "vibration",
    "vsd_frequency",
    "gor",
)


def config(options: argparse.Namespace) -> dict[str, object]:
    """The route. The window is left at mq-bridge's own, which is MQTT's largest (65 535)."""
    columns = ", ".join(_FIELDS)
    tokens = ", ".join(f"${{payload:{field}}}" for field in _FIELDS)
    mqtt = {
        "url": f"tcp://127.0.0.1:{options.port}",
        "username": options.user,
        "password": options.password,
        "topic": "esp/+/telemetry",
        "client_id": "esp-ingest",
        "qos": 1,
        "protocol": "v5",
        "clean_session": False,
        "session_expiry_interval": 3_600,
        "queue_capacity": 20_000,
    }
    sqlx = {
        "url": options.dsn,
        "table": "esp_telemetry",
        "insert_query": f"INSERT INTO esp_telemetry ({columns}) VALUES ({tokens})",
        "bulk_copy": True,
    }
    return {
        "input": {"mqtt": mqtt},
        "output": {"sqlx": sqlx},
        "batch_size": options.batch,
        "concurrency": options.concurrency,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="mqbridge")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--password", required=True)
    parser.add_argument("--batch", type=int, default=5_000)
    parser.add_argument("--concurrency", type=int, default=1)
    options = parser.parse_args()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    logging.basicConfig(level=logging.ERROR)
    mq_bridge.init_logging("error")
    route = mq_bridge.Route.from_config({"bench": config(options)}, "bench")
    route.start()
    stopping.wait()
    mq_bridge.request_shutdown()
    route.join()


if __name__ == "__main__":
    main()
