"""Whose reviews this machine's user may answer in the local inbox.

The inbox has no log-in: `--as EMAIL` is a claim. So it is accepted only for who the settings say this
user is, for whom a setting lets them act for, and for the invented people of examples. The production
profile has no inbox at all.
"""

from ftaas_pipelines.errors import Refused
from ftaas_pipelines.governance.requirement import matches
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.settings import Settings

DEMO = ("*@example.com", "*@example.org")
"""Domains that belong to nobody (RFC 2606): people there are invented."""


def may_answer_as(settings: Settings, project: Project, email: str) -> None:
    """Hold an identity against the rules of the local inbox.

    Raises:
        Refused: the profile has no inbox, or this user may not answer as that person.
    """
    where = f"--as, for {project.name}"
    if settings.profile == "production":
        raise Refused(
            "the production profile has no local inbox",
            where,
            email,
            "answer in Label Studio; `ftaas review show ID` gives the link",
        )
    invented = matches(DEMO, email)
    if invented and project.data_sensitivity in ("confidential", "restricted"):
        raise Refused(
            f"an invented person cannot sign for {project.data_sensitivity} data",
            where,
            email,
            "name real people in project.yaml and the platform policy",
        )
    acts_for = [p.strip() for p in settings.may_sign_as.split(",") if p.strip()]
    if not (invented or email.lower() == settings.who.lower() or matches(acts_for, email)):
        raise Refused(
            "this machine's user may not answer as this person",
            where,
            email,
            f"you act as {settings.who}: set FTAAS_ACTOR to your own e-mail, or have the other's reviews "
            "allowed by FTAAS_MAY_SIGN_AS",
        )
