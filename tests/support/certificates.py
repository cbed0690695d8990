"""Certificates for tests of TLS, made by openssl."""

import shutil
import subprocess
from pathlib import Path

from tests.support.databases import unavailable

PASSWORD = "of the key"


class Authority:
    """A CA in a folder, which makes certificates there: NAME.crt and NAME.key."""

    def __init__(self, folder: Path, *, days: int = 2) -> None:
        self.folder = folder
        folder.mkdir()
        self._run(f"req -x509 -newkey rsa:2048 -nodes -days {days} -keyout ca.key -out ca.crt -subj /CN=test-ca")

    def issue(self, name: str, *, days: int = 2, names: str = "DNS:localhost,IP:127.0.0.1") -> None:
        """Anew, if it is there. Negative days: expired."""
        (self.folder / "san").write_text(f"subjectAltName={names}\n")
        self._run(f"req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}")
        signed = f"-CA ca.crt -CAkey ca.key -CAcreateserial -days {days} -extfile san"
        self._run(f"x509 -req -in {name}.csr {signed} -out {name}.crt")

    def encrypt(self, name: str) -> None:
        """A copy of NAME.key under a password, encrypted.key."""
        self._run(f"rsa -in {name}.key -aes256 -out encrypted.key -passout", f"pass:{PASSWORD}")

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def _run(self, command: str, *more: str) -> None:
        openssl = shutil.which("openssl")
        if openssl is None:
            unavailable("no openssl: apt-get install openssl")
            raise AssertionError("unreachable")
        subprocess.run([openssl, *command.split(), *more], cwd=self.folder, check=True, capture_output=True)
