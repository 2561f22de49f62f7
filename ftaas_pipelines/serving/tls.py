"""TLS at the public port: 1.3 alone, with a certificate that is read again when its file changes.

What is wrong with a certificate or its key is said before the port opens. A bad one that comes while it is
open changes nothing, and is told: connections and new ones go on with the one before.
"""

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.settings import Settings

if TYPE_CHECKING:  # the command line reads this module for a URL
    from cryptography import x509

_LOOK_S = 1.0
_OTHERS = 0o007
_CERTIFICATE, _KEY, _CA = "FTAAS_TLS_CERTIFICATE", "FTAAS_TLS_KEY", "FTAAS_TLS_CA"
_LOOPBACK = ipaddress.ip_address("127.0.0.1")


def wanted(settings: Settings) -> bool:
    """Whether the public port speaks TLS.

    Raises:
        InputInvalid: a certificate without a key, or a key without one.
    """
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        missing = _KEY if settings.tls_certificate else _CERTIFICATE
        raise InputInvalid("is not set, and its counterpart is", missing, do="set both, or neither")
    return bool(settings.tls_certificate)


def check(settings: Settings) -> None:
    """That the port can speak TLS with what the settings name; nothing where they name nothing.

    Raises:
        InputInvalid: a file is missing, or the key open to others, expired, encrypted, or another's.
    """
    if wanted(settings):
        certificate, key = Path(settings.tls_certificate), Path(settings.tls_key)
        _private(key)
        leaf = _leaf(certificate)
        _valid_now(leaf, certificate, datetime.datetime.now(datetime.UTC))
        _its(leaf, key, certificate)
        _context(certificate, key)  # and OpenSSL takes them


def url(settings: Settings, environment: str) -> str:
    """Where an environment is asked: by a name that its certificate is for, where it has one."""
    if not settings.tls_certificate:
        return f"http://{_LOOPBACK}:{settings.port(environment)}"
    try:
        host = name(settings)
    except InputInvalid:  # told where the port is opened
        host = "localhost"
    return f"https://{host}:{settings.port(environment)}"


def name(settings: Settings) -> str:
    """A name that the certificate is for: loopback where it is, else the first. It is what a client checks.

    Raises:
        InputInvalid: the certificate cannot be read, or names nothing.
    """
    from cryptography import x509

    file = Path(settings.tls_certificate)
    try:
        names = _leaf(file).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        do = "get one with a DNS name or an address as its subjectAltName"
        raise InputInvalid("names nothing that it is for", f"{_CERTIFICATE}: {file}", do=do) from None
    if _LOOPBACK in names.get_values_for_type(x509.IPAddress):
        return str(_LOOPBACK)
    dns = [n.replace("*", "ftaas") for n in names.get_values_for_type(x509.DNSName)]
    addresses = [str(a) for a in names.get_values_for_type(x509.IPAddress)]
    return "localhost" if "localhost" in dns else [*dns, *addresses][0]


def trusted(settings: Settings) -> ssl.SSLContext:
    """By whom the platform lets an endpoint be vouched for when it asks one.

    Raises:
        InputInvalid: the file of them cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca or None)
    except (OSError, ssl.SSLError) as error:
        do = "name a PEM file of certificates, or unset it to trust whom the system trusts"
        raise InputInvalid(
            "cannot be read as certificates", f"{_CA}: {settings.tls_ca}", _why(error), do
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


class Certificate:
    """The server's side: its context, kept at what the files hold.

    Args:
        say: told what was read anew, and what could not be.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None]):
        """Reads the files. Raises InputInvalid, as `check` does."""
        check(settings)
        self._settings, self._say = settings, say
        self._files = Path(settings.tls_certificate), Path(settings.tls_key)
        self._stamp, self._said = self._look(), ""
        self.context = _context(*self._files)

    async def watch(self) -> None:
        """Look for new files, for ever. Who is connected stays so; the next handshake has the new one."""
        while True:
            await asyncio.sleep(_LOOK_S)
            stamp = self._look()
            if stamp != self._stamp:
                self._renew(stamp)

    def _renew(self, stamp: Any) -> None:
        try:
            check(self._settings)  # of both, before the context in use is touched
            self.context.load_cert_chain(*self._files)
        except (InputInvalid, OSError, ssl.SSLError) as error:
            # Not the stamp: one file comes after the other, so what does not fit now may in a moment.
            if str(error) != self._said:
                self._said = str(error)
                self._say(f"the TLS certificate stays as it was: {error}")
            return
        self._stamp, self._said = stamp, ""
        self._say(f"TLS certificate read: {self._files[0]}")

    def _look(self) -> list[tuple[int, int, int] | None]:
        found: list[tuple[int, int, int] | None] = []
        for file in self._files:
            try:
                stat = file.stat()
            except OSError:
                found.append(None)
            else:
                found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return found


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        do = "name a PEM file of the certificate and those between it and its authority"
        raise InputInvalid(
            "OpenSSL does not take it", f"{_CERTIFICATE}: {certificate}", _why(error), do
        ) from None
    return context


def _private(key: Path) -> None:
    try:
        mode = key.stat().st_mode & 0o777
    except OSError as error:
        raise _unreadable(_KEY, key, error) from None
    if mode & _OTHERS:
        do = f"run `chmod 600 {key}`, and get a new key if others may have read it"
        raise InputInvalid("is open to every user of this machine", f"{_KEY}: {key}", f"{mode:04o}", do)


def _leaf(file: Path) -> "x509.Certificate":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(file.read_bytes())[0]
    except OSError as error:
        raise _unreadable(_CERTIFICATE, file, error) from None
    except ValueError:
        do = "name a PEM file, the endpoint's own certificate first in it"
        raise InputInvalid("holds no certificate", f"{_CERTIFICATE}: {file}", do=do) from None


def _valid_now(leaf: "x509.Certificate", file: Path, now: datetime.datetime) -> None:
    where, do = f"{_CERTIFICATE}: {file}", "put a valid one there; it is read within a second"
    if leaf.not_valid_after_utc <= now:
        raise InputInvalid("has expired", where, f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC", do)
    if leaf.not_valid_before_utc > now:
        raise InputInvalid(
            "is not valid yet", where, f"from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC", do
        )


def _its(leaf: "x509.Certificate", file: Path, certificate: Path) -> None:
    """That a key is the certificate's, and can be used as it lies there."""
    from cryptography.hazmat.primitives import serialization

    where = f"{_KEY}: {file}"
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    except OSError as error:
        raise _unreadable(_KEY, file, error) from None
    except TypeError:
        raise InputInvalid("is encrypted", where, do="put it there without a passphrase, mode 600") from None
    except ValueError:
        raise InputInvalid("holds no private key", where, do="name a PEM file of one") from None
    der = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*der) != leaf.public_key().public_bytes(*der):
        do = "name the key that this certificate was issued for"
        raise InputInvalid(f"is not the key of {certificate}", where, do=do)


def _unreadable(setting: str, file: Path, error: OSError) -> InputInvalid:
    do = "name a file that the user whom the platform runs as can read"
    return InputInvalid("cannot be read", f"{setting}: {file}", error.strerror or "", do)


def _why(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
