"""Label Studio: where people review rows and sign. It carries questions out and answers back, no more.

`connect` finds the server that the settings name, or the one that `make dev` started. What counts of
what it says is decided in `ftaas_pipelines.review`.
"""

from typing import TYPE_CHECKING

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.settings import Settings
from resources.label_studio import server

if TYPE_CHECKING:
    from resources.label_studio.client import LabelStudio

__all__ = ["connect"]


def connect(settings: Settings, ledger: Ledger) -> "LabelStudio | None":
    """The Label Studio of these settings; None where reviews stay in the local inbox.

    Nothing is asked of the server yet: what it says first may be that it is down.

    Raises:
        InputInvalid: an address without a token.
    """
    note = server.running(settings.home)
    if settings.label_studio_url:
        url, token = settings.label_studio_url, settings.label_studio_token
        if not token and note and note.url == url:
            token = note.token
        if not token:
            raise InputInvalid(
                "the token is missing",
                "FTAAS_LABEL_STUDIO_TOKEN",
                do="set it to the token of the platform's own Label Studio account",
            )
    elif note:
        url, token = note.url, note.token
    else:
        return None
    database = settings.label_studio_database
    if not database and note and note.url == url:
        database = server.sqlite_url(settings.home)
    from resources.label_studio.client import LabelStudio  # most commands connect to none

    return LabelStudio(url, token, home=settings.home, ledger=ledger, database=database)
