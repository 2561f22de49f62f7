"""The Label Studio that we start ourselves: on this machine, for this machine, ended with its starter.

FTAAS_HOME/label_studio/secrets.json    its secret key, the platform's account: only we may read it
FTAAS_HOME/label_studio/server.json     address and token while it runs: only we may read it
FTAAS_HOME/label_studio/data/           its SQLite database, where no PostgreSQL is named
"""

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.settings import Settings
from resources.label_studio import installation, private
from resources.ports import require_free

SERVICE = "platform@ftaas.local"
"""The platform's own account. It opens rounds; it never signs."""
_READY_S = 300
_STOP_S = 10
_TOLD_EVERY_S = 10
# Nothing else of the shell: Label Studio reads bare names such as HOST, PORT and DEBUG as settings.
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "SSL_CERT_FILE")


@dataclass(frozen=True)
class Note:
    """What `server.json` says: where the server is, and which process it is."""

    url: str
    token: str
    pid: int
    started: float


def running(home: Path) -> Note | None:
    """The server that was started for this home, while its process lives."""
    found = private.read(_folder(home) / "server.json")
    try:
        note = Note(**found)
        process = psutil.Process(note.pid)
        same = abs(process.create_time() - note.started) < 1
        return note if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (TypeError, psutil.NoSuchProcess):
        return None


def sqlite_url(home: Path) -> str:
    """SQLAlchemy URL of the local server's database, to be read only."""
    return f"sqlite:///file:{(_folder(home) / 'data' / 'label_studio.sqlite3').resolve()}?mode=ro&uri=true"


class Server:
    """A Label Studio of our own. `start()` it, `wait()` until it answers, `stop()` it.

    Attributes:
        url, token: of the server, known before it runs.
        log: where it writes.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._folder = _folder(settings.home)
        self._secrets = _own_secrets(self._folder / "secrets.json")
        self.url = f"http://127.0.0.1:{settings.port_label_studio}"
        self.token: str = self._secrets["token"]
        self.log = settings.home / "logs" / "dev" / "label_studio.log"
        self.child: subprocess.Popen[bytes] | None = None

    @property
    def variables(self) -> dict[str, str]:
        """The settings by which other processes find this server."""
        return {"FTAAS_LABEL_STUDIO_URL": self.url, "FTAAS_LABEL_STUDIO_TOKEN": self.token}

    def start(self, say: Callable[[str], None]) -> None:
        """Start the process, installing Label Studio where it is not; does not wait for it.

        Raises:
            InputInvalid: the port is in use, or the database is no PostgreSQL.
            FtaasError: it could not be installed.
        """
        require_free("LABEL_STUDIO", self._settings.port_label_studio)
        installation.install(say)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        data = self._folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        data.chmod(0o700)
        command = [str(installation.PYTHON), str(Path(__file__).with_name("process.py")), str(os.getpid())]
        command += ["start", "--no-browser", "--internal-host", "127.0.0.1", "--log-level", "WARNING"]
        command += ["--port", str(self._settings.port_label_studio)]
        with self.log.open("wb") as sink:
            self.child = subprocess.Popen(
                command,
                env=self._environment(data),
                # Its version page shows the newest commit of the folder it runs in.
                cwd=data,
                stdout=sink,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def wait(self, say: Callable[[str], None]) -> None:
        """Until it answers and knows the platform's token; then `server.json` names it.

        Raises:
            FtaasError: it ended, was not ready in time, or another server answers in its place.
        """
        assert self.child is not None, "start() comes first"
        began = told = time.monotonic()
        while not _healthy(self.url):
            now = time.monotonic()
            if self.child.poll() is not None or now - began > _READY_S:
                raise FtaasError("Label Studio did not start", "make dev", do=f"see {self.log}")
            if now - told > _TOLD_EVERY_S:
                told = now
                say(f"waiting for Label Studio ({now - began:.0f} s; the first start sets up its database)")
            time.sleep(0.3)
        import httpx  # not on the way of a command that asks only where the server is

        token = {"Authorization": f"Token {self.token}"}
        known = httpx.get(f"{self.url}/api/current-user/whoami", headers=token, timeout=30)
        if not known.is_success or self.child.poll() is not None:
            raise FtaasError(
                "Label Studio does not know the platform's account",
                self.url,
                f"status {known.status_code}",
                f"its database is of another {self._folder / 'secrets.json'}: restore both from one backup",
            )
        note = Note(self.url, self.token, self.child.pid, psutil.Process(self.child.pid).create_time())
        private.write(self._folder / "server.json", asdict(note))

    def stop(self) -> None:
        """End the process; what it holds stays. Stopping twice is harmless."""
        (self._folder / "server.json").unlink(missing_ok=True)
        if self.child is None:
            return
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self.child.kill()
        self.child.wait()

    def _environment(self, data: Path) -> dict[str, str]:
        own = {
            "BASE_DATA_DIR": str(data.resolve()),
            "HOST": "",
            "DEBUG": "false",
            "ALLOWED_HOSTS": "127.0.0.1,localhost",
            "CORS_ALLOWED_ORIGINS": self.url,
            "USERNAME": SERVICE,
            "PASSWORD": self._secrets["password"],
            "USER_TOKEN": self.token,
            "DISABLE_SIGNUP_WITHOUT_LINK": "true",
            "COLLECT_ANALYTICS": "false",
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
            "LATEST_VERSION_CHECK": "false",
            "ENABLE_LOCAL_FILES_STORAGE": "false",
            **_database(self._settings.label_studio_database),
        }
        return {
            **{name: os.environ[name] for name in _INHERITED if name in os.environ},
            **{f"LABEL_STUDIO_{name}": value for name, value in own.items()},
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "SECRET_KEY": self._secrets["secret_key"],
            "PYTHONWARNINGS": "ignore",
            "PYTHONUNBUFFERED": "1",
        }


def _folder(home: Path) -> Path:
    return home / "label_studio"


def _own_secrets(path: Path) -> dict[str, str]:
    found = private.read(path)
    if not found:
        found = {
            "secret_key": secrets.token_urlsafe(48),
            "password": secrets.token_urlsafe(24),
            "token": secrets.token_hex(20),
        }
        private.write(path, found)
    return found


def _database(url: str) -> dict[str, str]:
    if not url:
        return {"DJANGO_DB": "sqlite"}
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parts = make_url(url)
    except ArgumentError:
        parts = None
    if parts is None or not parts.drivername.startswith("postgresql"):
        raise InputInvalid(
            "is not a PostgreSQL URL",
            "FTAAS_LABEL_STUDIO_DATABASE",
            do="write postgresql://user:password@host:5432/name, or unset it to use SQLite",
        )
    return {
        "DJANGO_DB": "default",
        "POSTGRE_USER": parts.username or "",
        "POSTGRE_PASSWORD": parts.password or "",
        "POSTGRE_HOST": parts.host or "localhost",
        "POSTGRE_PORT": str(parts.port or 5432),
        "POSTGRE_NAME": parts.database or "",
    }


def _healthy(url: str) -> bool:
    import httpx

    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.HTTPError:
        return False
