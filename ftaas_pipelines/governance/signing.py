"""Ed25519 signatures with a key kept in FTAAS_HOME/keys (made at first use, mode 0600).

`platform.pem` signs; `platform.pub`, made beside it, is all that checking needs: an auditor's machine
holds only that one.
"""

import base64
import contextlib
import functools
import os
import uuid
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ftaas_pipelines.errors import FtaasError

PRIVATE = "platform.pem"
PUBLIC = "platform.pub"


class Verifier:
    """Checks signatures against one public key, which is read and built once."""

    def __init__(self, public: Ed25519PublicKey):
        self._public = public

    def holds(self, message: bytes, signature: str) -> bool:
        """Whether the key signed `message`; a signature is base64 in its one canonical spelling."""
        try:
            raw = base64.b64decode(signature, validate=True)
            if base64.b64encode(raw).decode() != signature:
                return False  # the last letter has bits that decoding drops
            self._public.verify(raw, message)
        except (InvalidSignature, ValueError, TypeError):
            return False
        return True

    @property
    def pem(self) -> str:
        """The public key, to put beside what it signed."""
        return self._public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ).decode()


def sign(home: Path, message: bytes) -> str:
    """Base64 signature of `message` with this installation's key.

    Raises:
        FtaasError: only the public key is here: this machine checks and never signs.
    """
    return base64.b64encode(_private(home).sign(message)).decode()


def verify(home: Path, message: bytes, signature: str) -> bool:
    """Whether this installation's key signed `message`; False where it has no key."""
    trusted = verifier(home)
    return trusted is not None and trusted.holds(message, signature)


def verifier(home: Path) -> Verifier | None:
    """What checks this installation's signatures; None where it has no key yet."""
    for name in (PRIVATE, PUBLIC):
        path = home / "keys" / name
        with contextlib.suppress(FileNotFoundError):
            return _verifier(path, _mark(path))
    return None


def _mark(path: Path) -> tuple[int, int]:
    """Changes when the file is another one: a key restored meanwhile is read again."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


@functools.lru_cache(maxsize=16)
def _verifier(path: Path, _: tuple[int, int]) -> Verifier:
    if path.name == PRIVATE:
        return Verifier(_read(path, _).public_key())
    key = serialization.load_pem_public_key(path.read_bytes())
    if not isinstance(key, Ed25519PublicKey):
        raise FtaasError("is not an Ed25519 public key", str(path), do="restore it from a backup")
    return Verifier(key)


@functools.lru_cache(maxsize=16)
def _read(path: Path, _: tuple[int, int]) -> Ed25519PrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise FtaasError("is not an Ed25519 key", str(path), do="restore it from a backup")
    return key


def _private(home: Path) -> Ed25519PrivateKey:
    path = home / "keys" / PRIVATE
    if not path.exists():
        if path.with_name(PUBLIC).exists():
            do = "put the installation's platform.pem there; a new key would not verify what stands"
            raise FtaasError("the signing key is missing", str(path), do=do)
        pem = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        _write_once(path, pem, 0o600)
    public = path.with_name(PUBLIC)
    key = _read(path, _mark(path))
    if not public.exists():
        with contextlib.suppress(OSError):  # a key that is mounted read-only signs as well
            _write_once(public, Verifier(key.public_key()).pem.encode(), 0o644)
    return key


def _write_once(path: Path, data: bytes, mode: int) -> None:
    """Of two first users exactly one file survives: O_EXCL on a private name, then link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
