"""Pictures of the console out of the demo, into docs/pictures: `make console-pictures`."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from playwright.sync_api import Page

from tests.support.browser import chromium, sign_in, tab

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "pictures"
DEMO_SECONDS = 240
PLAY_MILLISECONDS = 150_000  # of the demo before the pictures: faults have begun, and their alarms are open
MOST_BYTES = 200_000
_LINE = re.compile(r"console: (http://\S+?)/  user (\S+), password (\S+)")
# name → (address, size, dark); WELL is the well with the worst alarm.
PICTURES = {
    "console-fleet": ("#/fleet", "desk", False),
    "console-well": ("#/well/WELL?range=6h", "desk", False),
    "console-well-dark": ("#/well/WELL?range=6h", "desk", True),
    "console-alarms": ("#/alarms?state=unacknowledged", "desk", False),
    "console-phone": ("#/fleet", "phone", False),
}


def main() -> int:
    """Run the demo, sign in, and keep a picture of each page. Returns 1 if one is too large for the repository."""
    command = [sys.executable, "-m", "esp_ingest", "demo", "--duration", str(DEMO_SECONDS)]
    with tempfile.TemporaryFile() as said:
        demo = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        try:
            return _take(*_await_console(demo, said))
        finally:
            demo.send_signal(signal.SIGINT)
            demo.wait(120)


def _await_console(demo: "subprocess.Popen[bytes]", said: IO[bytes]) -> tuple[str, str, str]:
    """Address, user and password, as the demo says them in its first lines."""
    while demo.poll() is None:
        text = os.pread(said.fileno(), 65_536, 0).decode(errors="replace")
        if found := _LINE.search(text):
            return found[1], found[2], found[3]
        time.sleep(0.2)
    raise SystemExit("The demo ended before it said where its console is.")


def _take(url: str, user: str, password: str) -> int:
    FOLDER.mkdir(exist_ok=True)
    with chromium() as browser:
        with tab(browser, url) as page:
            sign_in(page, user, password)
            page.wait_for_timeout(PLAY_MILLISECONDS)
            well = page.locator("tbody th a").first.text_content() or ""
        sizes = []
        for name, (address, size, dark) in PICTURES.items():
            with tab(browser, url, size, dark) as page:
                sign_in(page, user, password, at="/" + address.replace("WELL", well))
                sizes.append(_keep(page, name))
    return int(max(sizes) > MOST_BYTES)


def _keep(page: Page, name: str) -> int:
    page.wait_for_timeout(4_000)
    path = FOLDER / f"{name}.png"
    page.screenshot(path=str(path))
    size = path.stat().st_size
    sys.stdout.write(f"{path} {size} bytes\n")
    return size


if __name__ == "__main__":
    sys.exit(main())
