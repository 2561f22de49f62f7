"""TLS at the public port: 1.3 and nothing else, certificates that rotate, and what is wrong said before."""

import dataclasses
import datetime
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import trustme
from callers import eventually
from serving_house import CAUSAL, House, random_adapter

from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.serving import asking, deployments, supervisor_process, tls
from ftaas_pipelines.settings import Settings

QUESTION: Any = [{"role": "user", "content": "What does fault E42 mean?"}]
NAMES = ("127.0.0.1", "localhost")


def write(folder: Path, issued: trustme.LeafCert) -> None:
    """As a rotation does it: each file replaced, one after the other."""
    for name, pem in (("key.pem", issued.private_key_pem), ("cert.pem", None)):
        new = folder / f"new-{name}"
        new.write_bytes(pem.bytes() if pem else b"".join(p.bytes() for p in issued.cert_chain_pems))
        new.chmod(0o600)
        new.replace(folder / name)


def settings(folder: Path, **changes: Any) -> Settings:
    given: dict[str, Any] = {
        "tls_certificate": str(folder / "cert.pem"),
        "tls_key": str(folder / "key.pem"),
        **changes,
    }
    return Settings(home=folder, **given)


@pytest.fixture
def files(tmp_path: Path) -> tuple[trustme.CA, Path]:
    ca = trustme.CA()
    write(tmp_path, ca.issue_cert(*NAMES))
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    return ca, tmp_path


def wrong(settings_: Settings, *said: str) -> None:
    """One clear error, before anything listens: what, where, what to do."""
    with pytest.raises(InputInvalid) as caught:
        supervisor_process.check_port(settings_, "staging")
    (problem,) = caught.value.problems
    assert problem.where.startswith(("FTAAS_TLS_CERTIFICATE", "FTAAS_TLS_KEY")) and problem.do
    assert all(word in str(problem) for word in said), str(problem)


def test_what_is_wrong_with_a_certificate_is_said(files: tuple[trustme.CA, Path]) -> None:
    ca, folder = files
    key = folder / "key.pem"
    tls.check(settings(folder))
    tls.check(Settings())
    wrong(settings(folder, tls_key=""), "FTAAS_TLS_KEY", "set both")
    wrong(settings(folder, tls_certificate=""), "FTAAS_TLS_CERTIFICATE")
    wrong(settings(folder, tls_key=str(folder / "none.pem")), "none.pem", "No such file")
    wrong(settings(folder, tls_certificate=str(folder / "none.pem")), "none.pem", "No such file")
    key.chmod(0o644)
    wrong(settings(folder), "open to every user", "0644", "chmod 600")
    key.chmod(0o640)  # as Kubernetes gives a secret to a group
    tls.check(settings(folder))
    other = folder / "other.pem"
    other.write_bytes(ca.issue_cert("localhost").private_key_pem.bytes())
    other.chmod(0o600)
    wrong(settings(folder, tls_key=str(other)), "is not the key of", "other.pem")
    other.write_bytes(b"nothing")
    wrong(settings(folder, tls_key=str(other)), "no private key")
    wrong(settings(folder, tls_certificate=str(other)), "no certificate")
    from cryptography.hazmat.primitives import serialization as ser

    loaded = ser.load_pem_private_key(key.read_bytes(), None)
    locked = ser.BestAvailableEncryption(b"secret")
    other.write_bytes(loaded.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, locked))
    wrong(settings(folder, tls_key=str(other)), "is encrypted")
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    write(folder, ca.issue_cert(*NAMES, not_before=now - 2 * day, not_after=now - day))
    wrong(settings(folder), "has expired", f"{now - day:%Y-%m-%d}")
    write(folder, ca.issue_cert(*NAMES, not_before=now + day, not_after=now + 2 * day))
    wrong(settings(folder), "not valid yet")


def test_the_name_that_is_shown_is_one_of_the_certificates(files: tuple[trustme.CA, Path]) -> None:
    ca, folder = files
    for names, shown in (
        (NAMES, "127.0.0.1"),
        (("llm.acme.org", "localhost"), "localhost"),
        (("llm.acme.org",), "llm.acme.org"),
        (("*.acme.org",), "ftaas.acme.org"),
    ):
        write(folder, ca.issue_cert(*names))
        assert tls.url(settings(folder, port_production=8443), "production") == f"https://{shown}:8443"
    assert tls.url(Settings(), "production") == "http://127.0.0.1:8000"


# -- a whole endpoint ------------------------------------------------------------------------------


class Secure:
    """An endpoint that speaks TLS, and who vouches for it. The certificate names no address."""

    def __init__(self, folder: Path):
        self.ca, self.folder = trustme.CA(), folder
        self.issue()
        self.ca.cert_pem.write_to_path(folder / "ca.pem")
        pair = {"tls_certificate": str(folder / "cert.pem"), "tls_key": str(folder / "key.pem")}
        self.house = House.at(folder / "home", **pair, tls_ca=str(folder / "ca.pem"))

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.house.settings.port_staging

    @property
    def url(self) -> str:
        return f"https://localhost:{self.address[1]}"

    def issue(self) -> None:
        write(self.folder, self.ca.issue_cert("llm.acme.org", "localhost"))

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.folder / "ca.pem"))

    def serial(self) -> str:
        """Of the certificate that a new connection gets."""
        with socket.create_connection(self.address, timeout=5) as raw:
            with self.trust.wrap_socket(raw, server_hostname="llm.acme.org") as wrapped:
                got: Any = wrapped.getpeercert()
                return got["serialNumber"]

    def log(self) -> str:
        return self.house.folder.log.read_text("utf-8")


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    made = Secure(tmp_path_factory.mktemp("tls"))
    made.house.settings.home.mkdir()
    made.house.add("alpha", CAUSAL, random_adapter(made.house.store, CAUSAL, 1))
    try:
        made.house.up(made.house.releases["alpha"][0])
        yield made
    finally:
        made.house.close()


def test_clients_come_in_by_tls_and_the_platform_asks_by_it(secure: Secure) -> None:
    http: Any = httpx.Client(verify=secure.trust, trust_env=False)
    with http:
        client = openai.OpenAI(base_url=f"{secure.url}/v1", api_key="any", http_client=http)
        whole = client.chat.completions.create(model="alpha", messages=QUESTION, seed=1)
        pieces = client.chat.completions.create(model="alpha", messages=QUESTION, seed=1, stream=True)
        said = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
        assert said == whole.choices[0].message.content
    (shown,) = deployments.deployments(secure.house.settings)
    assert shown.url == secure.url
    asked = asking.ask(secure.house.settings, "staging", "alpha", QUESTION)  # at 127.0.0.1, by that name
    assert asked["answer"] == whole.choices[0].message.content


def test_who_is_not_vouched_for_is_not_asked(secure: Secure, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    for ca in (str(tmp_path / "other.pem"), ""):  # another authority; the system's, which does not know ours
        doubting = dataclasses.replace(secure.house.settings, tls_ca=ca)
        with pytest.raises(FtaasError, match=r"certificate is not trusted.*FTAAS_TLS_CA"):
            asking.ask(doubting, "staging", "alpha", QUESTION)
    with pytest.raises(InputInvalid, match="FTAAS_TLS_CA"):
        tls.trusted(Settings(tls_ca=str(tmp_path / "none.pem")))


def test_nothing_but_tls_1_3_is_spoken(secure: Secure) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = secure.trust
        context.minimum_version = context.maximum_version = version
        with socket.create_connection(secure.address, timeout=5) as raw:
            if version is ssl.TLSVersion.TLSv1_2:
                with pytest.raises(ssl.SSLError):
                    context.wrap_socket(raw, server_hostname="localhost")
            else:
                with context.wrap_socket(raw, server_hostname="localhost") as wrapped:
                    assert wrapped.version() == "TLSv1.3"
    plain = f"http://127.0.0.1:{secure.address[1]}"
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{plain}/livez", timeout=5, trust_env=False)


def test_a_new_certificate_comes_without_a_connection_lost(secure: Secure) -> None:
    before = secure.serial()
    with httpx.Client(base_url=secure.url, verify=secure.trust, trust_env=False) as client:
        assert client.get("/livez").status_code == 200
        stream = client.send(
            client.build_request("POST", "/v1/chat/completions",
                                 json={"model": "alpha", "messages": QUESTION, "stream": True}),
            stream=True,
        )  # fmt: skip
        secure.issue()
        eventually(lambda: secure.serial() != before)
        assert stream.read().endswith(b"data: [DONE]\n\n")
        assert client.get("/livez").status_code == 200  # on the connection from before
    # One that does not fit changes nothing, and is told once.
    good = secure.serial()
    (secure.folder / "cert.pem").write_bytes(b"half")
    eventually(lambda: "stays as it was" in secure.log())
    assert secure.serial() == good
    time.sleep(2.5)
    assert secure.log().count("stays as it was") == 1
    secure.issue()
    eventually(lambda: secure.serial() != good)


def test_a_deployment_with_a_wrong_key_does_not_begin(secure: Secure, tmp_path: Path) -> None:
    home = House.at(tmp_path, tls_certificate=str(secure.folder / "cert.pem"), tls_key=str(tmp_path / "key"))
    (tmp_path / "key").write_bytes(secure.ca.issue_cert("localhost").private_key_pem.bytes())
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(InputInvalid, match="is not the key of"):
        deployments.up(home.settings, "staging", secure.house.releases["alpha"][0])
    assert home.processes() == [] and not home.folder.desired().projects
