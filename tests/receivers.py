"""Receivers on this machine: a webhook (real HTTP) and a mail server that speaks SMTP on the wire."""

import contextlib
import datetime
import http.server
import json
import socketserver
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class Hook(http.server.BaseHTTPRequestHandler):
    """Keeps what is posted; answers with the status that its server is told."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append(json.loads(body))  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


class MailStandIn(socketserver.StreamRequestHandler):
    """A stand-in for a mail server, on the wire: EHLO, STARTTLS, AUTH PLAIN, MAIL, RCPT, DATA, QUIT."""

    def handle(self) -> None:
        server: Any = self.server
        if getattr(server, "implicit", False):
            self._secure(server)
        self.say(b"220 stand-in")
        while line := self.rfile.readline().strip():
            verb, _, rest = line.partition(b" ")
            match verb.upper():
                case b"EHLO":
                    self.say(b"250-stand-in\r\n250-STARTTLS\r\n250 AUTH PLAIN")
                case b"STARTTLS":
                    self.say(b"220 go")
                    self._secure(server)
                case b"AUTH":
                    server.got.append(b64decode(rest.split()[1]).decode())
                    self.say(b"235 welcome")
                case b"DATA":
                    self.say(b"354 go on")
                    server.got.append(b"".join(iter(self.rfile.readline, b".\r\n")).decode())
                    self.say(b"250 taken")
                case b"QUIT":
                    self.say(b"221 bye")
                    self.connection.close()
                    return
                case b"RCPT" if any(a.encode() in rest for a in getattr(server, "unknown", ())):
                    self.say(b"550 no such user")
                case _:
                    self.say(b"250 ok")

    def _secure(self, server: Any) -> None:
        self.connection = server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        server.got.append("tls")

    def say(self, answer: bytes) -> None:
        self.connection.sendall(answer + b"\r\n")


@contextlib.contextmanager
def receivers() -> Iterator[Callable[..., Any]]:
    """Gives what starts a server of a handler on a free port of this machine; ends all of them."""
    servers: list[socketserver.ThreadingTCPServer] = []

    def start(handler: type[socketserver.BaseRequestHandler], **facts: Any) -> Any:
        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        vars(server).update(got=[], port=server.server_address[1], **facts)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return server

    try:
        yield start
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def certificate(folder: Path) -> Path:
    """A certificate and key for localhost, signed by itself, in one PEM file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "localhost.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + made.public_bytes(pem))
    return path
