"""Ed25519 signatures with a key kept in FTAAS_HOME/keys (made at first use, mode 0600)."""

import base64
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def _key(home: Path) -> Ed25519PrivateKey:
    path = home / "keys" / "platform.pem"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        pem = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        # O_EXCL on a private name, then link: of two first users exactly one key survives.
        temporary = path.with_suffix(f".{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as f:
            f.write(pem)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    return key


def sign(home: Path, message: bytes) -> str:
    """Base64 signature of `message` with this installation's key."""
    return base64.b64encode(_key(home).sign(message)).decode()


def verify(home: Path, message: bytes, signature: str) -> bool:
    """Whether this installation's key signed `message`."""
    try:
        _key(home).public_key().verify(base64.b64decode(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True
