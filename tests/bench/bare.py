"""A process that does nothing but answer HTTP: what an answer takes on this machine under this load, whoever gives it.

    python -m tests.bench.bare

Says its port on stdout. Ends when its stdin does.
"""

import os
import selectors
import socket
import sys

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n"


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    while all(key.fileobj is listener for key, _ in selector.select()):
        client, _ = listener.accept()
        with client:
            client.recv(8_192)
            client.sendall(_ANSWER)
    os._exit(0)


if __name__ == "__main__":
    main()
