"""Keys, tokens and passwords: the patterns of detect-secrets, and a few that it lacks.

Its plugins are used by their `denylist` alone: its scanner reads files, asks servers, and guesses by
entropy, which calls part numbers secrets.

Time grows with a text's length and no faster, also where somebody writes a text to make it grow: endpoints
read prompts with these (`tests/test_guard_time.py`).
"""

import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module

from ftaas_pipelines.data.privacy.findings import Detector, Span

# Plugin and kind. Left out: Artifactory (its AP… matches words in capitals), IP addresses, keywords; and
# JWT, npm and OpenAI, whose patterns take the square of a text's length: `_OURS` has their equals.
_PLUGINS = (
    ("aws", "AWSKeyDetector", "aws_access_key"),
    ("azure_storage_key", "AzureStorageKeyDetector", "azure_storage_key"),
    ("basic_auth", "BasicAuthDetector", "password"),
    ("cloudant", "CloudantDetector", "cloudant_key"),
    ("discord", "DiscordBotTokenDetector", "discord_token"),
    ("github_token", "GitHubTokenDetector", "github_token"),
    ("gitlab_token", "GitLabTokenDetector", "gitlab_token"),
    ("ibm_cloud_iam", "IbmCloudIamDetector", "ibm_cloud_key"),
    ("ibm_cos_hmac", "IbmCosHmacDetector", "ibm_cloud_key"),
    ("mailchimp", "MailchimpDetector", "mailchimp_key"),
    ("pypi_token", "PypiTokenDetector", "pypi_token"),
    ("sendgrid", "SendGridDetector", "sendgrid_key"),
    ("slack", "SlackDetector", "slack_token"),
    ("softlayer", "SoftlayerDetector", "softlayer_key"),
    ("square_oauth", "SquareOAuthDetector", "square_token"),
    ("stripe", "StripeDetector", "stripe_key"),
    ("telegram_token", "TelegramBotTokenDetector", "telegram_token"),
    ("twilio", "TwilioKeyDetector", "twilio_key"),
)
_OURS = (
    (
        "private_key",
        re.compile(
            r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
            # Not over the first line of another one: many of these would each be read to the end.
            r"(?:(?:[^\"-]|-(?!----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY)){0,20000}?"
            r"-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
            r"|(?:\s+[A-Za-z0-9+/=]{40,})*)"
        ),
    ),
    ("bearer_token", re.compile(r"\b[Bb]earer\s+(?P<value>[\w.~+/-]{20,}=*)")),
    (
        "service_token",
        re.compile(
            r"(?<![\w-])(?:sk-|ghp_|gho_|github_pat_|glpat-|hf_|xox[abp]-|sk_test_|AIza|npm_|dop_v1_)"
            r"[A-Za-z0-9_-]{20,}"
        ),
    ),
    (  # password=hunter2: a value with letters and digits, or it is a sentence about passwords
        "password",
        re.compile(
            r"(?i)\b(?:password|passwd|passwort|pwd|passphrase|mot de passe|contraseña|secret|api[_ -]?key|"
            r"access[_ -]?token|auth[_ -]?token|client[_ -]?secret)"
            r"[\"']?\s?(?:[:=]|\bis\b|\bist\b|\best\b)\s?[\"']?"
            r"(?P<value>(?=[^\s\"'\\]{0,40}\d)(?=[^\s\"'\\]{0,40}[A-Za-z])[^\s\"'\\<>{}\[\]$,;()]{6,128})"
        ),
    ),
    # Each of these reads a row of its characters once, from the row's start, and never turns back in it.
    (
        "json_web_token",
        re.compile(
            r"(?<![\w=-])(?>[\w=-]*?(?=eyJ))(?P<value>eyJ[\w=-]++\.[\w=-]++\.?)",
            re.ASCII,
        ),
    ),
    ("npm_token", re.compile(r"/:_authToken=\s*(?P<value>npm_\S+|[A-Fa-f0-9-]{36})")),
    (
        "openai_key",
        re.compile(
            r"(?<![\w-])(?>[\w-]*?(?=sk-))(?P<value>sk-[\w-]*?(?<=[A-Za-z0-9]{20})T3BlbkFJ[A-Za-z0-9]{20})",
            re.ASCII,
        ),
    ),
)
# How the plugins write what stands between a name and its secret, and the same without a choice of how to
# share out a run of blanks.
_ASSIGNS = r"(?: *)(?:=|:|:=|=>| +|::)(?: *)", r"(?: *+(?:=|:|:=|=>|::) *+| ++)"
_LONG = 16  # a group this long is the secret; a shorter one is its prefix
_GOES_ON = re.compile(r"(?:[\w/+=-]|\.(?=\w))+", re.ASCII)
_STOPS = re.compile(r"[\s\"'\\<>,;]")
_NAMED = r"(?:key|pwd|pw|pass|password|passwd|passwort|passphrase|mot de passe|contraseña|token|secret)"
_GATE = (
    r"(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[0-9A-Z]{16}|['\"][\w/+]{40}['\"]|AccountKey=|://[^\s]+:[^\s]+@|"
    r"\.[\w-]{6}\.[\w-]{27}|gh[pousr]_|github_pat_|gl(?:pat|dt|ft|soat|rt|cbt|imt|ptt|agent|oas)-|GR1348941|"
    r"eyJ[\w=-]+\.|[0-9a-z]{8}-us\d|npm_|_authToken|sk-[\w-]{20}|hf_\w{20}|"
    r"(?i:xox[apbosr]-|hooks\.slack|softlayer)|pypi-Ag|SG\.[\w-]{22}|sq0csp|[rs]k_live_|sk_test_|\d:[\w-]{35}|(?:AC|SK)[a-z0-9]{32}|AIza|dop_v1_|"
    r"PRIVATE KEY|"
    rf"(?i:bearer\s+\S{{20}}|{_NAMED}[\"'\])]{{0,2}} *(?:[:=>]+| ) *[\"'\[]?[\w-]{{24}}|"
    rf"{_NAMED}[\"']?\s?(?:[:=]|is|ist|est)\s?[\"']?\S*\d)"
)


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    plugins = [(getattr(import_module(f"detect_secrets.plugins.{m}"), c), kind) for m, c, kind in _PLUGINS]
    theirs = ((kind, regex.pattern, regex.flags) for plugin, kind in plugins for regex in plugin.denylist)
    return (*_OURS, *((kind, re.compile(said.replace(*_ASSIGNS), flags)) for kind, said, flags in theirs))


def _place(match: re.Match[str]) -> tuple[int, int]:
    if "value" in match.re.groupindex:
        return match.span("value")
    places = [match.span(group) for group in range(1, match.re.groups + 1)]
    start, end = max(places, key=lambda p: p[1] - p[0], default=match.span())
    # Basic auth's password is its only group, however short.
    return (start, end) if end - start >= _LONG or match.group().startswith("://") else match.span()


def _rest(text: str, end: int) -> int:
    """The end of the token that goes on behind a match: some patterns know its first part only (JWT)."""
    rest = _GOES_ON.match(text, end)
    return rest.end() if rest else end


def _find(text: str) -> Iterator[Span]:
    for kind, regex in _patterns():
        covered = 0
        for match in regex.finditer(text):
            if match.end() <= covered:
                continue  # inside the one before, and its rest is that one's: many would read it each
            start, end = _place(match)
            if kind not in ("private_key", "password"):
                end = _rest(text, end)
            if kind != "private_key" and (stop := _STOPS.search(text, start, end)):
                end = stop.start()
            if end > start:
                covered = end
                yield Span(kind, start, end)


SECRET = Detector("secret", "high", _GATE, _find, "secret")
