"""The one place that reads the environment.

Every setting is an `FTAAS_…` variable. `ftaas doctor` lists them with value and origin, so a
setting that is not declared here does not exist.
"""

import getpass
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ftaas_pipelines.errors import InputInvalid

ENVIRONMENTS = ("staging", "production")


def _setting(default: Any, doc: str, secret: bool = False) -> Any:
    return field(default=default, metadata={"doc": doc, "secret": secret})


@dataclass(frozen=True)
class Settings:
    """What this machine and this user chose. Made by `load()`; immutable afterwards."""

    home: Path = _setting(Path(".ftaas"), "where everything the platform writes is kept")
    projects: Path = _setting(Path("projects"), "folder of project folders")
    policy: Path = _setting(Path("policy/platform.yaml"), "the platform policy")
    prices: str = _setting("", "what machines cost, draw and emit; empty: prices.yaml beside the policy")
    actor: str = _setting("", "who acts (an e-mail); empty: the OS user through actor_map")
    profile: str = _setting("local", "local, or production: no local inbox, no demo identities")
    may_sign_as: str = _setting(
        "", "e-mails or patterns whose reviews this user may answer in the local inbox, comma-separated"
    )
    label_studio_url: str = _setting(
        "", "Label Studio; empty: the one that `make dev` started, else the inbox"
    )
    label_studio_token: str = _setting("", "token of the platform's own Label Studio account", True)
    label_studio_database: str = _setting("", "PostgreSQL URL of the Label Studio that we start", True)
    daemon: int = _setting(0, "1 where a daemon runs the line: it acts for each project's owner")
    actor_map: str = _setting("", "OS users and their e-mails: 'anna=anna@acme.org,ben=…'")
    ledger_url: str = _setting("", "SQLAlchemy URL of the ledger; empty: ledger.db in home", True)
    ledger_head: str = _setting(
        "", "folder or URL for the ledger's signed heads, out of reach of its database; empty: in home alone"
    )
    mlflow_uri: str = _setting("", "MLflow tracking URI; empty: mlflow.db in home", True)
    store: str = _setting("", "folder of artifacts; empty: store in home")
    threads: int = _setting(1, "CPU threads of one stage or engine; part of what fixes a digest")
    adapter_mib: int = _setting(0, "memory for the adapters of one engine, MiB; 0: no limit")
    data_runner: str = _setting("native", "native: this machine; ray: a Ray cluster, for the data plane")
    data_workers: int = _setting(0, "processes of the data plane; 0: one a core, at most 8")
    ray_address: str = _setting("", "address of the Ray cluster; empty: one is started on this machine")
    port_production: int = _setting(8000, "public port of the production endpoint")
    port_staging: int = _setting(8001, "public port of the staging endpoint")
    port_dagster: int = _setting(3000, "port of the Dagster UI")
    port_mlflow: int = _setting(5000, "port of the MLflow UI")
    port_label_studio: int = _setting(8080, "port of Label Studio")
    access: str = _setting(
        "", "required: endpoints ask for a key, as always in the production profile; open, or empty: not"
    )
    access_pepper: str = _setting("", "what API keys are hashed under; empty: access_pepper in home", True)
    oidc_issuer: str = _setting("", "issuer whose tokens the endpoints take (OpenID Connect)")
    oidc_audience: str = _setting("ftaas", "audience that such a token must name")
    oidc_jwks: str = _setting("", "the issuer's public keys: a file or an https URL of a JWK set")
    oidc_once: int = _setting(0, "1: a token (jti) is taken once")
    oidc_allowance: str = _setting("", "of each token's subject: requests_per_minute=60,…; empty: no limit")
    limits_url: str = _setting("", "redis://… where gateways share what was asked; empty: in memory", True)
    tls_certificate: str = _setting("", "PEM file of the endpoints' certificates; empty: plain HTTP")
    tls_key: str = _setting("", "PEM file of its private key, for its owner (and group) alone")
    tls_ca: str = _setting("", "PEM file of who may vouch for an endpoint that is asked; empty: the system's")
    rollout_every_s: int = _setting(10, "seconds between two looks at the rules of `serving.rollout`")
    lease_wait_s: int = _setting(3600, "seconds to wait for another run that makes the same thing")
    alert_webhook: str = _setting("", "URL that gets a JSON POST when a run fails", True)
    alert_email: str = _setting("", "address that gets a mail when a run fails")
    notify_webhook: str = _setting("", "URL that gets a Slack-compatible POST when a review waits", True)
    notify_email: int = _setting(0, "1: whoever is asked for a review gets a mail")
    remind_days: int = _setting(3, "days after which a waiting review is brought to mind again")
    smtp_url: str = _setting("", "smtp://user:password@host:port for every mail", True)
    mail_from: str = _setting("", "sender of every mail; empty: alert_email")

    @property
    def price_table(self) -> Path:
        return Path(self.prices) if self.prices else self.policy.with_name("prices.yaml")

    @property
    def store_path(self) -> Path:
        return Path(self.store) if self.store else self.home / "store"

    @property
    def ledger(self) -> str:
        return self.ledger_url or f"sqlite:///{(self.home / 'ledger.db').resolve()}"

    @property
    def mlflow(self) -> str:
        return self.mlflow_uri or f"sqlite:///{(self.home / 'mlflow.db').resolve()}"

    @property
    def who(self) -> str:
        """E-mail or OS name of the actor; what the ledger records."""
        if self.actor:
            return self.actor
        user = getpass.getuser()
        pairs = (pair.partition("=") for pair in self.actor_map.split(",") if pair.strip())
        return {k.strip(): v.strip() for k, _, v in pairs}.get(user, user)

    @property
    def access_required(self) -> bool:
        """Whether an endpoint answers only who gives a key or a token."""
        return self.profile == "production" or self.access not in ("", "open")  # a slip opens nothing

    def port(self, environment: str) -> int:
        return self.port_production if environment == "production" else self.port_staging

    def environ(self) -> dict[str, str]:
        """The settings as variables for a child process, paths made absolute."""
        out: dict[str, str] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Path):
                value = value.resolve()
            if value != "":
                out[_variable(f.name)] = str(value)
        return out

    def table(self, env: Mapping[str, str] | None = None) -> list[dict[str, str]]:
        """One row a setting: variable, value (secrets masked), origin, what it is for."""
        env = os.environ if env is None else env
        rows: list[dict[str, str]] = []
        for f in fields(self):
            value = str(getattr(self, f.name))
            if f.metadata["secret"] and value:
                value = "********"
            origin = "environment" if _variable(f.name) in env else "default"
            rows.append(
                {
                    "variable": _variable(f.name),
                    "value": value,
                    "origin": origin,
                    "doc": f.metadata["doc"],
                }
            )
        return rows


def _variable(name: str) -> str:
    return f"FTAAS_{name.upper()}"


def load(env: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the environment.

    Raises:
        InputInvalid: a variable that must be a number is none.
    """
    env = os.environ if env is None else env
    values: dict[str, Any] = {}
    for f in fields(Settings):
        raw = env.get(_variable(f.name))
        if raw is None:
            continue
        if f.type in (int, "int"):
            try:
                values[f.name] = int(raw)
            except ValueError:
                raise InputInvalid(
                    "is not a whole number", _variable(f.name), repr(raw), "set a number or unset it"
                ) from None
        elif f.type in (Path, "Path"):
            values[f.name] = Path(raw).expanduser()
        else:
            values[f.name] = raw
    return Settings(**values)
