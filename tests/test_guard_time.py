"""Looking through a text takes time that grows with its length and no faster, whoever wrote the text.

The gateway hears nobody else meanwhile. The texts repeat what each pattern begins with, so that it is tried
from everywhere and never, or always, comes to an end.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftaas_pipelines.data.privacy import credentials, identifiers
from ftaas_pipelines.projects import policy
from ftaas_pipelines.projects.guard import GuardRules
from ftaas_pipelines.serving.guard import Guard
from ftaas_pipelines.serving.openai_shapes import RequestRefused

SHORT = 6_000  # characters; the other text is twice as long
STRICT: dict[str, Any] = {
    "input": {
        "secrets": "redact",
        "personal_data": "redact",
        "injection": "flag",
        "words": ["Project Chimera"],
    },
    "output": {"secrets": "redact", "personal_data": "redact", "words": ["Project Chimera"]},
}
PILED = "\u0323\u0300\u0327"  # in no order: Unicode sorts them
# What a text begins with, and what it then repeats.
TEXTS: dict[str, tuple[str, str]] = {
    "slashes behind npm_": ("npm_", "/"),
    "npm": ("", "//a/:_authToken=npm_"),
    "eyJ": ("", "eyJ"),
    "eyJ with dots": ("", "eyJa."),
    "sk-": ("", "sk-"),
    "sk- and long": ("", "sk-" + "a" * 24),
    "sk- and its middle": ("sk-", "a" * 20 + "T3BlbkFJ"),
    "first lines of keys": ("", "-----BEGIN PRIVATE KEY-----"),
    "first and last lines": ("", "-----BEGIN PRIVATE KEY----------END PUBLIC KEY-----"),
    "a key without end": ("-----BEGIN PRIVATE KEY-----", "\n" + "A" * 64),
    "words of a first line": ("-----BEGIN ", "A "),
    "aws": ("", "awskeypwd'"),
    "aws and values": ("", "awskey'" + "a" * 41),
    "names and blanks": ("", " key" + " " * 31),
    "names and colons": ("", "softlayer_key : = "),
    "slack": ("", "xoxb-1-"),
    "slack's numbers": ("xoxb-", "1-"),
    "passwords": ("", "pwd="),
    "passwords with values": ("", "password is a1b2c3 "),
    "bearer": ("", "Bearer "),
    "gitlab": ("", "glagent-"),
    "users of URLs": ("", "://a:b"),
    "e-mails": ("", "a@b.co "),
    "signs of e-mails": ("", "@"),
    "an endless domain": ("a@", "a."),
    "e-mails in words": ("", "a (at) b.com "),
    "telephones": ("", "+49 30 123456 "),
    "telephones in words": ("", "call me at "),
    "numbers by groups": ("", "1 "),
    "digits": ("", "0123456789"),
    "cards": ("", "4111 1111 1111 1111 "),
    "IBANs": ("", "DE89370400440532013000 "),
    "social security": ("", "no 123-45-6789 "),
    "record numbers": ("", "mrn 482913 "),
    "signs on a letter": ("a", PILED),
    "ligatures": ("", "\ufdfa"),
    "nothing to be seen": ("", "\u200b"),
    "ignore": ("", "ignore the "),
    "blanks": ("ignore", " "),
    "the policy's words": ("", "Project "),
    "lines": ("", "\n"),
}


def best(work: Callable[[], Any]) -> float:
    """Seconds, without what others do to this machine."""

    def once() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return min(once() for _ in range(4))


def look(guard: Guard, text: str) -> None:
    try:
        guard.check_input([{"role": "user", "content": text}])
        guard.check_output(text)
    except RequestRefused:
        pass


@pytest.mark.parametrize("name", TEXTS)
def test_time_grows_with_length_and_no_faster(name: str) -> None:
    start, repeated = TEXTS[name]
    guard = Guard(GuardRules.model_validate(STRICT))
    short, long = (start + repeated * ((n - len(start)) // len(repeated)) for n in (SHORT, 2 * SHORT))
    said: list[str] = []
    for _ in range(3):  # a machine that was busy with something else is asked again
        times = best(lambda: look(guard, short)), best(lambda: look(guard, long))
        said.append(f"{times[0] * 1e3:.1f} ms for {SHORT} characters, {times[1] * 1e3:.1f} ms for twice that")
        if times[1] < 3 * times[0]:
            return
    raise AssertionError(said)


def beginnings(regex: re.Pattern[str]) -> list[str]:
    """What texts that a pattern sees begin with; the same ones each time."""
    found: set[str] = set()

    @settings(max_examples=4, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.from_regex(regex))
    def collect(made: str) -> None:
        seen = regex.search(made)
        assert seen is not None
        found.update(seen[0][:size] for size in (3, 7, 14, 30, 60))

    collect()
    return sorted(found)


def test_what_every_value_begins_with_is_read_once() -> None:
    """From each pattern's own source: also of one that is yet to come."""
    slow: list[str] = []
    patterns = list(credentials._patterns())  # pyright: ignore[reportPrivateUsage]
    patterns += [(n.kind, n.pattern.regex) for n in identifiers._NATIONAL]  # pyright: ignore[reportPrivateUsage]
    for kind, regex in patterns:
        for begun in beginnings(regex):
            short, long = (begun * (n // len(begun)) for n in (4_000, 16_000))

            def took(text: str, regex: re.Pattern[str] = regex) -> float:
                return best(lambda: all(regex.finditer(text)))

            # Four times is linear, sixteen the square; a millisecond is nothing.
            if all(took(long) > 8 * took(short) + 0.001 for _ in range(3)):
                slow.append(f"{kind}: {begun!r}")
    assert slow == []


def test_the_platform_refuses_what_takes_longer_than_others_can_wait() -> None:
    """Of all messages together: many short ones take as long as one."""
    rules = policy.load(Path("policy/platform.yaml")).guard
    most = rules.input.max_characters
    assert most is not None and most <= 32_000
    guard = Guard(rules)
    half = {"role": "user", "content": "x" * (most // 2)}
    assert guard.check_input([half, half])[1] == []
    for messages in (
        [half, half, {"role": "user", "content": "ab"}],
        [{"role": "user", "content": "x" * (most + 1)}],
    ):
        with pytest.raises(RequestRefused, match="max_characters"):
            guard.check_input(messages)
