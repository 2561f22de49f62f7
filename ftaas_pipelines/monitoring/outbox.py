"""What leaves the platform for people: mails by SMTP, messages by webhook. The one place that sends.

Secrets stand in the settings (SMTP password, webhook address); an error names the setting, never its value.
"""

import logging
import smtplib
import ssl
from email.message import EmailMessage
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.settings import Settings

TIMEOUT_S = 10
logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs the URL, which may be a secret


class NotSent(FtaasError):
    """A message did not leave.

    Attributes:
        only_this: the way works, but not for this recipient or message.
    """

    def __init__(self, what: str, where: str, got: str, do: str, only_this: bool = False):
        super().__init__(what, where, got, do)
        self.only_this = only_this


def mail(config: Settings, to: str, subject: str, text: str) -> None:
    """Send one mail; with a user in the URL only over TLS, its certificate checked.

    Raises:
        NotSent: the server is out of reach, refuses, or a setting is wrong.
    """
    try:
        url = urlsplit(config.smtp_url)
        message = EmailMessage()
        message["Subject"], message["To"] = subject, to
        message["From"] = config.mail_from or config.alert_email
        message.set_content(text)
        if url.scheme not in ("smtp", "smtps"):
            raise ValueError("neither smtp nor smtps")
        with _server(url.scheme, url.hostname or "localhost", url.port) as server:
            if url.username:
                if url.scheme == "smtp":
                    server.starttls(context=ssl.create_default_context())
                server.login(unquote(url.username), unquote(url.password or ""))
            server.send_message(message)
    except smtplib.SMTPRecipientsRefused as error:
        codes = ", ".join(sorted({str(code) for code, _ in error.recipients.values()}))
        do = "mend the address in project.yaml"
        raise NotSent("the mail server refuses the recipient", "mail", codes, do, only_this=True) from None
    except (OSError, ValueError, smtplib.SMTPException) as error:  # ValueError: the port is no number
        do = "mend FTAAS_SMTP_URL or FTAAS_MAIL_FROM, or wait for the server"
        raise NotSent("the mail cannot be sent", "FTAAS_SMTP_URL", type(error).__name__, do) from None


def _server(scheme: str, host: str, port: int | None) -> smtplib.SMTP:
    if scheme == "smtps":
        # Without a context of its own, no certificate is checked.
        context = ssl.create_default_context()
        return smtplib.SMTP_SSL(host, port or 465, timeout=TIMEOUT_S, context=context)
    return smtplib.SMTP(host, port or 25, timeout=TIMEOUT_S)


def post(url: str, document: dict[str, Any], setting: str) -> None:
    """POST one JSON document.

    Args:
        setting: the name of the setting that the URL came from, for the error.

    Raises:
        NotSent: it is out of reach or answers with an error.
    """
    try:
        httpx.post(url, json=document, timeout=TIMEOUT_S).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        refused = isinstance(error, httpx.HTTPStatusError)
        got = f"HTTP {error.response.status_code}" if refused else type(error).__name__
        raise NotSent("the webhook does not take it", setting, got, f"mend {setting}, or wait") from None
