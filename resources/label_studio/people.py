"""The people's accounts: made by the platform, pinned by number in the ledger, never pinned anew in silence.

Anyone with an account can make another one for any e-mail, and nobody checks that the e-mail is theirs.
So an account counts only when we made it: its number is read in a session that we opened with the
password that we chose. What was made by others is refused until somebody adopts it, by name and on record.
"""

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import httpx
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from ftaas_pipelines.errors import FtaasError, InputInvalid, Problem
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.store import hold
from resources.label_studio import private
from resources.label_studio.api import TIMEOUT_S, Api, LabelStudioError

ACTOR = "platform"
PINNED = "person_pinned"
_ADOPT = "if it is theirs, `ftaas review people --adopt EMAIL`; else have it deleted there"


def pins(ledger: Ledger, server: str) -> dict[str, str]:
    """E-mail to account id, as last pinned on a server."""
    found = ledger.entries(PINNED, authentic=True)
    return {e.subject.lower(): str(e.body["user"]) for e in found if e.body["server"] == server}


def asked_of(projects: Iterable[Project]) -> dict[str, list[str]]:
    """E-mail (lower case) to what the projects may ask of it: "codes: sme"."""
    found: dict[str, list[str]] = {}
    for project in projects:
        for role in ("sme", "rai", "approver"):
            for email in project.people.holding(role):
                found.setdefault(email.lower(), []).append(f"{project.name}: {role}")
    return found


def provision(api: Api, ledger: Ledger, emails: Iterable[str], home: Path) -> list[Problem]:
    """See that each of these people has an account of their own, pinned. Done twice, it makes nothing new.

    Returns:
        What is wrong, one problem a person whose answers could not count.

    Raises:
        FtaasError: Label Studio is out of reach, or gives no invitations.
    """
    wanted = sorted({e.lower() for e in emails})
    problems: list[Problem] = []
    with hold(home / "label_studio" / "people.lock"):
        pinned, accounts = pins(ledger, api.server), _accounts(api)
        for email in wanted:
            try:
                if email in pinned:
                    _still_theirs(email, pinned[email], accounts)
                else:
                    user = _own_account(api, email, home, known=email in accounts)
                    _pin(ledger, api.server, email, user)
            except InputInvalid as error:
                problems += error.problems
    return problems


def adopt(api: Api, ledger: Ledger, email: str, *, why: str, actor: str) -> str:
    """Pin the account that has this e-mail now, whoever made it; returns its id. On record, with a reason.

    Raises:
        InputInvalid: no reason, or no such account.
    """
    email = email.lower()
    if not why.strip():
        raise InputInvalid("a reason is missing", "--why", do="say how you know that the account is theirs")
    user = _accounts(api).get(email)
    if user is None or user == str(api.me.id):
        raise InputInvalid("has no account there that could be theirs", "--adopt", email, "make one first")
    before = pins(ledger, api.server).get(email, "")
    _pin(ledger, api.server, email, user, {"adopted": why.strip(), "before": before}, actor)
    return user


def who_may_sign(api: Api, ledger: Ledger, database: str = "") -> dict[str, str]:
    """Account id to e-mail, of pinned accounts that are still members under that e-mail.

    The platform's account, the organisation's owner and, where we may look, superusers are left out.
    """
    accounts = _accounts(api)
    barred = {str(api.me.id), str(getattr(api.organisation, "created_by", ""))} | _privileged(database)
    return {
        user: email
        for email, user in pins(ledger, api.server).items()
        if accounts.get(email) == user and user not in barred
    }


def people_table(
    api: Api, ledger: Ledger, asked: Mapping[str, Sequence[str]], database: str = ""
) -> list[dict[str, str]]:
    """A row a person: e-mail, what for, account, and whether their answers count ("ready") or why not.

    Args:
        asked: as of `asked_of`.
    """
    pinned, accounts = pins(ledger, api.server), _accounts(api)
    ready = who_may_sign(api, ledger, database)
    rows: list[dict[str, str]] = []
    for email in sorted({*asked, *pinned}):
        state = "ready"
        if email not in pinned:
            state = "an account that the platform did not make" if email in accounts else "no account yet"
        elif email not in accounts:
            state = "the account is gone"
        elif accounts[email] != pinned[email]:
            state = f"now another account ({accounts[email]}) has this e-mail"
        elif pinned[email] not in ready:
            state = "a superuser or service account: never signs"
        what = asked.get(email, ())
        row = {"email": email, "for": ", ".join(what), "account": pinned.get(email, ""), "state": state}
        rows.append(row)
    return rows


# -- accounts ------------------------------------------------------------------------------------


def _accounts(api: Api) -> dict[str, str]:
    """E-mail to account id. Those that were removed from the organisation show no e-mail any more."""
    found = api.call("list its accounts", lambda sdk, once: sdk.users.list(request_options=once))
    return {str(u.email).lower(): str(u.id) for u in found}


def _still_theirs(email: str, user: str, accounts: Mapping[str, str]) -> None:
    if accounts.get(email) == user:
        return
    if email in accounts:
        what = "another account now has this person's e-mail in Label Studio; it is not trusted"
        raise InputInvalid(what, email, f"account {accounts[email]}, pinned is {user}", _ADOPT)
    what = "this person's account in Label Studio is gone"
    raise InputInvalid(what, email, f"pinned is account {user}", "restore it, or make one and adopt it")


def _own_account(api: Api, email: str, home: Path, *, known: bool) -> str:
    """The id of the account that we made for this person, now or before a crash."""
    path = private.passwords_file(home)
    kept = private.read(path)
    password = kept.get(api.server, {}).get(email)
    if known:
        user = _log_in(api, email, password) if password else None
        if user is None:
            what = "has an account in Label Studio that the platform did not make"
            raise InputInvalid(what, email, do=_ADOPT)
        return user
    if not password:
        password = secrets.token_urlsafe(12)
        # Kept before it is used: after a crash in between, the account is known as ours by its password.
        private.write(path, {**kept, api.server: {**kept.get(api.server, {}), email: password}})
    return sign_up(api, email, password)


def sign_up(api: Api, email: str, password: str) -> str:
    """Make an account through the organisation's invitation: the API makes none with a password."""
    invited = api.call(
        "invite people", lambda sdk, once: sdk.organizations.invites.get_invite_link(request_options=once)
    )
    with _Session(api) as session:
        sent = _submit(session, f"/user/signup/?token={invited.token}", email, password)
        user = _who(session)
    if user is None:
        what = "Label Studio made no account for this person"
        raise InputInvalid(what, email, f"status {sent.status_code}", "make one there, then adopt it")
    return user


def _log_in(api: Api, email: str, password: str) -> str | None:
    with _Session(api) as session:
        _submit(session, "/user/login/", email, password)
        return _who(session)


class _Session(httpx.Client):
    """A browser's session, without the platform's token."""

    def __init__(self, api: Api):
        super().__init__(base_url=api.url, timeout=TIMEOUT_S, headers={"Referer": f"{api.url}/"})


def _submit(session: httpx.Client, page: str, email: str, password: str) -> httpx.Response:
    try:
        session.get(page)
        token = session.cookies.get("csrftoken", "")
        form = {"email": email, "password": password, "csrfmiddlewaretoken": token}
        return session.post(page, data=form)
    except httpx.HTTPError as error:
        raise _unreachable(session, error) from None


def _who(session: httpx.Client) -> str | None:
    """Who is logged in: the id comes from the session, never from an e-mail."""
    try:
        answer = session.get("/api/current-user/whoami")
        return str(answer.json()["id"]) if answer.is_success else None
    except httpx.HTTPError as error:
        raise _unreachable(session, error) from None


def _unreachable(session: httpx.Client, error: Exception) -> LabelStudioError:
    where = str(session.base_url)
    what = "Label Studio cannot be reached to see to people's accounts"
    return LabelStudioError(Problem(what, where, type(error).__name__, "start it, then run the same again"))


def _pin(
    ledger: Ledger, server: str, email: str, user: str, more: dict[str, str] | None = None, actor: str = ACTOR
) -> None:
    ledger.append(PINNED, email, {"server": server, "user": user, **(more or {})}, project="", actor=actor)


def _privileged(database: str) -> set[str]:
    """Accounts that can do anything, or nothing any more: only the database says which they are."""
    if not database:
        return set()
    url = re.sub(r"^postgresql(\+\w+)?://", "postgresql+psycopg2://", database)
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            query = sa.text("SELECT id FROM htx_user WHERE is_superuser OR is_staff OR NOT is_active")
            return {str(row.id) for row in connection.execute(query)}
    except SQLAlchemyError as error:
        reason = type(error).__name__
    do = "see FTAAS_LABEL_STUDIO_DATABASE; until it can be read, nobody's answer counts"
    raise FtaasError("Label Studio's database cannot be asked who its superusers are", got=reason, do=do)
