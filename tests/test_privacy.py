"""Personal data: what is found, how it is treated, and that no value of it ever leaves its text."""

import json
import logging
import re
import runpy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import iban, luhn

from benchmarks.privacy import HALF, LABELLED, labelled, rates
from ftaas_pipelines.data.privacy import toxicity
from ftaas_pipelines.data.privacy.profiles import SAFE_HARBOR
from ftaas_pipelines.data.privacy.screen import _BUILT_IN, Screen
from ftaas_pipelines.data.rows.records import Record
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects.dataset import Entity, Privacy, Treatment

MAIL, PHONE, CARD = "ann.lee@example.org", "+44 20 7946 0958", "4111 1111 1111 1111"
MRN = "M-482913"
GENERATOR = LABELLED.with_name("make_personal_data.py")


def record(*turns: str, number: int = 1, **extra: Any) -> Record:
    """Turns, user and assistant in turn; a text that begins with `system:` comes first."""
    messages = [{"role": "system", "content": t[7:]} for t in turns if t.startswith("system:")]
    rest = [t for t in turns if not t.startswith("system:")]
    messages += [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(rest)]
    return Record(f"{number:064x}", messages, "s", None, number, extra=extra)


def treated(
    treatment: Treatment, entities: tuple[Entity, ...] = ("email", "phone", "credit_card")
) -> Privacy:
    return Privacy(entities=dict.fromkeys(entities, treatment), toxicity="off")


# -- what is found ------------------------------------------------------------------------------------


def test_the_labelled_set_is_found_by_kind() -> None:
    rows = labelled()
    assert len(rows) == 500
    assert runpy.run_path(str(GENERATOR))["made"]() == LABELLED.read_text("utf-8")
    for name, half, recall, precision in (
        ("developed on", rows[:HALF], 0.95, 0.95),
        ("held out", rows[HALF:], 0.75, 0.9),  # a quarter of its values are written in unusual ways
    ):
        print(f"\n{name:24}recall precision places")
        for kind, rate in rates(half).items():
            print(f"{kind:24}{rate['recall']:6.3f} {rate['precision']:9.3f} {rate['places']:6}")
            assert rate["recall"] >= recall, kind
            assert rate["precision"] >= precision, kind


SECRETS = {  # in two parts, so that scanners of this repository see none
    "aws_access_key": "AKIA" + "IOSFODNN7EXAMPLE",
    "azure_storage_key": "AccountKey=" + "a1B2" * 22,
    "password": "https://bot:" + "hunter2hunter2@example.com/x",
    "cloudant_key": "cloudant_password = '" + "ab12" * 16 + "'",
    "discord_token": "M" + "a1" * 12 + ".X7x7X7." + "b2" * 13 + "c",
    "github_token": "ghp_" + "a1B2" * 9,
    "gitlab_token": "glpat-" + "a1B2" * 5,
    "ibm_cloud_key": "ibm_cloud_iam_key = " + "a1B2" * 11,
    "json_web_token": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "mailchimp_key": "0a1b" * 8 + "-us12",
    "npm_token": "//registry.example.org/:_authToken=" + "npm_a1B2a1B2a1B2",
    "openai_key": "sk-" + "a1B2" * 5 + "T3BlbkFJ" + "a1B2" * 5,
    "pypi_token": "pypi-AgEIcHlwaS5vcmc" + "a1B2" * 20,
    "sendgrid_key": "SG." + "a" * 22 + "." + "b" * 43,
    "slack_token": "xoxb-" + "123456789012-123456789012-abc123def456",
    "softlayer_key": "softlayer_api_key=" + "a1b2" * 16,
    "square_token": "sq0csp-" + "a" * 43,
    "stripe_key": "sk_live_" + "a1B2" * 6,
    "telegram_token": "123456789:" + "a1B2a" * 7,
    "twilio_key": "SK" + "a1b2" * 8,
    "private_key": "-----BEGIN PRIVATE KEY-----\n" + "MIIB" * 16 + "\n-----END PRIVATE KEY-----",
    "bearer_token": "Authorization: Bearer " + "abcdefghijklmnopqrstuvwxyz012345",
    "service_token": "hf_" + "a1B2" * 8,
}


@pytest.mark.parametrize(("kind", "secret"), SECRETS.items())
def test_secrets(kind: str, secret: str) -> None:
    text = f"see {secret} please"
    example = record(text, "ok")
    found, _ = Screen(Privacy(profile="default", toxicity="off")).screen([example])
    assert {f.kind for f in found if f.detector == "secret"} & {kind, "service_token"}
    assert example.prompt.count("[SECRET]") == 1
    assert ("hunter2" if kind == "password" else secret[-12:].strip("'")) not in example.prompt


def test_a_gate_lets_through_whatever_its_detector_finds() -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = [row["text"] for row in labelled()] + [f"see {secret} please" for secret in SECRETS.values()]
    texts += [f"{word} you" for word in toxicity.words()]
    column = pa.array(texts)
    for detector in (*_BUILT_IN, *toxicity.detectors()):
        passed = pc.match_substring_regex(column, detector.gate).to_pylist()
        found = [any(True for _ in detector.find(text)) for text in texts]
        assert any(found), detector.name
        assert [t for t, f, p in zip(texts, found, passed, strict=True) if f and not p] == [], detector.name


def test_places_are_those_of_the_text_as_it_was_and_no_value_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    call = {"id": "1", "function": {"name": "mail", "arguments": json.dumps({"to": MAIL})}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": f"forward to {MAIL}"},
        {"role": "user", "content": f"My card is {CARD}."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": f"called {PHONE}"},
        {"role": "assistant", "content": f"Done, {MAIL}"},
    ]
    extra = {"rejected": f"No, {PHONE}", "columns": {"note": f"{CARD}", "rpm": [1, 2]}}
    before = json.dumps([messages, extra])
    example = Record("a" * 64, messages, "s", None, 1, extra=json.loads(json.dumps(extra)))
    screen = Screen(Privacy(profile="hipaa_safe_harbor"))
    with caplog.at_level(logging.DEBUG):
        found, reasons = screen.screen([example])
    fields = {
        "system": f"forward to {MAIL}", "message_2": f"My card is {CARD}.", "message_4": f"called {PHONE}",
        "message_3.tool_calls": call["function"]["arguments"], "answer": f"Done, {MAIL}",
        "rejected": extra["rejected"], "column.note": CARD,
    }  # fmt: skip
    assert {f.field for f in found} == set(fields)
    assert {fields[f.field][f.start : f.end] for f in found} == {MAIL, PHONE, CARD}
    told = repr(found) + json.dumps([asdict(f) for f in found]) + json.dumps(screen.counts(found))
    told += repr(reasons) + repr(screen) + caplog.text
    after = json.dumps([example.messages, example.extra])
    for value in (MAIL, PHONE, CARD):
        assert value in before
        assert value not in told
        assert value not in after
    assert json.loads(example.messages[2]["tool_calls"][0]["function"]["arguments"]) == {"to": "[EMAIL]"}
    assert json.dumps([messages, extra]) == before, "what a record holds may be shared: it is copied first"


def test_none_finds_and_keeps_and_says_what_it_did_not_look_for() -> None:
    example = record(f"write to {MAIL} by 2026-11-20", "ok")
    screen = Screen(Privacy())
    found, reasons = screen.screen([example])
    assert example.prompt == f"write to {MAIL} by 2026-11-20"
    assert reasons == [None]
    told = screen.counts(found)
    assert told["email"] == 1
    assert told["phone"] == told["toxicity"] == 0
    unseen = {"person_names", "url", "date", "address", "age_over_89"}
    assert set(screen.not_checked) == {name for name, n in told.items() if n == "not checked"} == unseen
    assert Screen(Privacy(toxicity="off")).counts([])["toxicity"] == "not checked"


def test_safe_harbor_names_all_eighteen_and_admits_what_it_cannot_see() -> None:
    assert "".join(i.letter for i in SAFE_HARBOR) == "ABCDEFGHIJKLMNOPQR"
    screen = Screen(Privacy(profile="hipaa_safe_harbor"))
    assert {"person_names", "photographs", "biometric_identifiers"} < set(screen.not_checked)
    seen = {d.entity for d in _BUILT_IN} | {"person_name"}
    assert all(set(i.entities) <= seen and (i.entities or i.not_checked) for i in SAFE_HARBOR)
    example = record(
        "Aged 92, born 12 March 1934, admitted 2024-03-05 from 12 Example Street.", "a 40-year-old"
    )
    screen.screen([example])
    assert example.prompt == "Aged 90+, born [DATE], admitted 2024 from [ADDRESS]."
    assert example.answer == "a 40-year-old"


# -- how it is treated --------------------------------------------------------------------------------


@pytest.mark.parametrize("treatment", ["redact", "hash", "replace"])
def test_one_value_one_stand_in_within_a_record(treatment: Treatment) -> None:
    def make(number: int) -> Record:
        answer = json.dumps({"mail": MAIL, "phones": [PHONE], "card": 4111111111111111, "note": f"a\n{MAIL}"})
        return record(f"I am {MAIL}, {PHONE}", answer, number=number, rejected=f"Who is {MAIL}?")

    first, again, other = make(1), make(1), make(2)
    screen = Screen(treated(treatment))
    screen.screen([first, other])
    screen.screen([again])
    assert first == again
    said = json.loads(first.answer)
    assert first.prompt == f"I am {said['mail']}, {said['phones'][0]}"
    assert first.extra["rejected"] == f"Who is {said['mail']}?"
    assert said["note"] == f"a\n{said['mail']}"
    assert isinstance(said["card"], str)
    linked = json.loads(other.answer)["mail"] == said["mail"]
    assert linked == (treatment == "redact")
    shapes = {"redact": r"\[EMAIL\]", "hash": r"\[EMAIL:[0-9a-f]{8}\]", "replace": r"user\d+@example\.com"}
    assert re.fullmatch(shapes[treatment], said["mail"])
    if treatment == "replace":
        assert luhn.is_valid(said["card"])
        assert re.fullmatch(r"\+1-\d{3}-555-01\d\d", said["phones"][0])


def test_stand_ins_are_plausible_and_differ_where_values_do() -> None:
    entities: tuple[Entity, ...] = ("iban", "ip_address", "national_id", "vehicle_id", "device_id", "url")
    text = (
        "DE89370400440532013000 from 198.51.100.7, 198.51.100.8 and 2001:db8:7::9; SSN 123-45-6789, "
        "VIN 1M8GDM9AXKP042788, MAC 52:54:00:9d:0e:67, IMEI 490154203237518, https://example.org/ann"
    )
    example = record(text, "ok")
    Screen(treated("replace", entities)).screen([example])
    made = example.prompt
    assert not any(v in made for v in re.findall(r"[\w.:/-]{10,}", text) if v not in ("and", "from"))
    assert iban.is_valid(made.split()[0])
    addresses = re.findall(r"\b(?:192\.0\.2|198\.51\.100|203\.0\.113)\.\d+|2001:db8::[0-9a-f]+", made)
    assert len(set(addresses)) == 3
    again = record(made, "ok")
    found, _ = Screen(treated("keep", entities)).screen([again])
    kinds = {"iban", "ipv4", "ipv6", "vin", "mac_address", "imei", "url", "us_ssn"}
    assert {f.kind for f in found} == kinds, "a stand-in looks like what it stands for"


def test_a_value_known_by_its_context_is_treated_where_the_context_is_missing() -> None:
    example = record(f"Patient ID: {MRN}, and 482913 units", f"{MRN} was admitted; order X{MRN} too.")
    found, _ = Screen(treated("redact", ("medical_record_number",))).screen([example])
    label = "[MEDICAL_RECORD_NUMBER]"
    assert example.prompt == f"Patient ID: {label}, and 482913 units"
    assert example.answer == f"{label} was admitted; order X{MRN} too."
    assert [f.field for f in found] == ["answer", "prompt"]


def test_of_overlapping_places_the_longest_wins_but_nothing_kept_hides_personal_data() -> None:
    url = f"https://example.org/?mail={MAIL}&x=1"
    both = record(f"see {url}", "ok")
    Screen(treated("redact", ("url", "email"))).screen([both])
    assert both.prompt == "see [URL]"
    kept = record(f"see {url}", "ok")
    found, _ = Screen(
        treated("redact", ("email",)).model_copy(update={"entities": {"url": "keep", "email": "redact"}})
    ).screen([kept])
    assert MAIL not in kept.prompt
    assert {f.detector for f in found} == {"url", "email"}


def test_json_in_json_and_escapes_still_parse() -> None:
    inner = json.dumps({"to": MAIL, "phone": 2025550143, "name": "Zoë", "lines": f"a\n{PHONE}\t{MAIL}"})
    outer = json.dumps({"arguments": inner, "path": "C:\\new\\table"})
    example = record("go", f"```json\n{outer}\n```")
    Screen(treated("redact")).screen([example])
    parsed = json.loads(example.answer.removeprefix("```json\n").removesuffix("\n```"))
    assert parsed["path"] == "C:\\new\\table"
    assert json.loads(parsed["arguments"]) == {
        "to": "[EMAIL]", "phone": "[PHONE]", "name": "Zoë", "lines": "a\n[PHONE]\t[EMAIL]",
    }  # fmt: skip


def test_reasons_to_drop() -> None:
    options = Privacy(profile="default", entities={"national_id": "drop"}, toxicity="drop")
    records = [
        record("fine", "ok", number=1),
        record("SSN 123-45-6789", f"ok {MAIL}", number=2),
        record("you fucking idiot", "ok", number=3),
        record("screw the flange to the slave cylinder, oral dose 5 mg", "ok", number=4),
    ]
    found, reasons = Screen(options).screen(records)
    assert reasons == [None, "personal_data", "toxic", None]
    assert records[1].answer == f"ok {MAIL}", "a record that goes is left as it came"
    assert {(f.detector, f.kind, f.severity) for f in found if f.record_id == records[2].record_id} == {
        ("toxicity", "profanity", "medium")
    }
    off = Screen(options.model_copy(update={"toxicity": "off"}))
    assert off.screen(records[2:])[1] == [None, None]
    assert off.counts([])["toxicity"] == "not checked"


PIECES = st.sampled_from(
    [MAIL, PHONE, CARD, "203.0.113.9", f"MRN {MRN}", "AKIA" + "IOSFODNN7EXAMPLE", "\n", "\\", '"']
)
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=12)), max_size=8).map(" ".join)


@settings(deadline=None, max_examples=60)
@given(TEXTS, TEXTS, st.sampled_from(["redact", "hash", "replace"]))
def test_any_json_stays_json_and_the_batch_does_not_matter(one: str, two: str, treatment: Treatment) -> None:
    screen = Screen(treated(treatment, tuple(d.entity for d in _BUILT_IN if d.entity)))

    def make() -> list[Record]:
        answer = json.dumps({"a": [one, two], "b": two}, ensure_ascii=len(one) % 2 == 0)
        return [record(one, answer, number=1), record(two, one, number=2)]

    together, apart = make(), make()
    found, _ = screen.screen(together)
    alone = [screen.screen([r])[0] for r in apart]
    assert together == apart
    assert found == [f for part in alone for f in part]
    assert set(json.loads(together[0].answer)) == {"a", "b"}
    told = json.dumps([asdict(f) for f in found])
    assert MAIL not in told + together[0].prompt.replace("\\", "") or "\\" in one + two


# -- models -------------------------------------------------------------------------------------------


def tiny(folder: Path, head: str, labels: list[str], words: dict[str, int]) -> Path:
    """A BERT of one layer whose head was set so that it gives these words these labels."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, PreTrainedTokenizerFast
    from transformers.models.bert import modeling_bert

    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=64
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=16, max_position_embeddings=64, id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = getattr(modeling_bert, head)(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    known = [(vocabulary[w], label) for w, label in words.items()] + [(1, 0)]
    for step in range(150):
        picked = [known[(step * 7 + i * (step % 3 + 1)) % len(known)] for i in range(6)]
        ids = torch.tensor([[token for token, _ in picked]])
        target = [label for _, label in picked]
        labelled = torch.tensor([target if "Token" in head else max(target)]).reshape(
            (1, -1) if "Token" in head else (1,)
        )
        loss = model(input_ids=ids, labels=labelled).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_names_and_toxicity_by_models(tmp_path: Path) -> None:
    names = tiny(
        tmp_path / "names",
        "BertForTokenClassification",
        ["O", "B-PER", "I-PER"],
        {"Ann": 1, "Lee": 2, "pump": 0},
    )
    judge = tiny(
        tmp_path / "toxic", "BertForSequenceClassification", ["non_toxic", "toxic"], {"moldy": 1, "pump": 0}
    )
    screen = Screen(Privacy(profile="default", toxicity="drop"), {"names": names, "toxicity": judge})
    assert not {"person_names", "toxicity"} & set(screen.not_checked)
    records = [
        record("the pump of Ann Lee", "call Ann Lee now", number=1),
        record("moldy moldy", "ok", number=2),
    ]
    found, reasons = screen.screen(records)
    assert records[0].prompt == "the pump of [PERSON_NAME]"
    assert records[0].answer == "call [PERSON_NAME] now"
    assert reasons == [None, "toxic"]
    assert ("person_names", "person_name") in {(f.detector, f.kind) for f in found}
    with pytest.raises(InputInvalid, match="no label of the model stands for a person"):
        Screen(Privacy(), {"names": judge})
    with pytest.raises(InputInvalid, match="no label of the model speaks of toxicity"):
        Screen(Privacy(), {"toxicity": names})
