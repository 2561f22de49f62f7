"""The whole story of a review, in a real browser, against a real Label Studio, Dagster and training.

Two reviewers correct a row and reject one; the version made of their verdicts is signed, trained, released
and approved; what is forged or changed afterwards is found.
"""

import json
import os
import re
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PROJECT
from label_studio import PEOPLE, Result, Studio
from processes import command_line, dev_server, wait_for
from test_line import materialise_alone, states

from assets.line import open_line
from ftaas_pipelines import settings
from ftaas_pipelines.data.versions import diff
from ftaas_pipelines.governance.ledger import Entry, open_ledger
from ftaas_pipelines.review import round_log
from ftaas_pipelines.review.round_log import RoundState
from ftaas_pipelines.store import Store
from resources.label_studio.client import KEY

Run = Callable[..., Any]
SAM, SARA, RITA, ALEX, _ = PEOPLE
SAMPLE = 8
CORRECTED = json.dumps({"part": "pump", "step": "call the fitter"})
SIGNED: dict[str, Result] = {
    "sme": {"decision": "approve", "checks": ["rows_reviewed"], "comment": "read the sample"},
    "rai": {"decision": "approve", "checks": ["licence_ok"], "comment": "read the findings"},
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def codes(
    home: Path, project_factory: Callable[..., Path], label_studio: Studio, ftaas: Run
) -> Iterator[Path]:
    """A project whose rows are reviewed, in Label Studio; whatever it deployed is stopped at the end."""
    label_studio.attach(home)
    policy = Path(os.environ["FTAAS_POLICY"])
    easy = policy.read_text("utf-8").replace("must_beat_naive: true", "must_beat_naive: false")
    policy.write_text(easy, encoding="utf-8")
    source = "{name: rows, path: data/rows.jsonl}"
    told = (
        "{name: rows, path: data/rows.jsonl, licence: CC-BY-4.0, consent: written by our own staff,"
        " purpose: training, owner: Plant 7}"
    )
    text = PROJECT.format(name="codes", title="Codes of the line").replace(source, told)
    extra = f"evaluation: {{max_new_tokens: 8, max_records: 8}}\nreviews: {{row_sample: {SAMPLE}}}\n"
    yield project_factory("codes", text=text, extra=extra)
    ftaas("deployment", "stop", "codes")


def test_two_reviewers_mend_the_rows_sign_the_result_and_nobody_forges_the_rest(
    codes: Path, ftaas: Run, label_studio: Studio
) -> None:
    from browser import Desk
    from pictures import chromium

    if chromium() is None:
        assert not os.environ.get("FTAAS_CI"), "CI must have chromium"
        pytest.skip("chromium is not installed")
    source = codes.parent / "data" / "rows.jsonl"
    came_in = source.read_bytes()
    with Desk(label_studio.url) as desk:
        sam, rita, alex = (desk.log_in(p, label_studio.user(p).password) for p in (SAM, RITA, ALEX))

        # Version A. Its rows wait for the SME, and whoever ran it learns for whom and where.
        waits = awaited(ftaas)
        assert waits["sme"]["asset"] == "row_review_request" and waits["sme"]["who"] == [SAM]
        version_a = made()["dataset"]
        link = waits["sme"]["link"]
        assert link.startswith(label_studio.url)

        # Sam reads every row of the sample, corrects the first, rejects the second.
        shown = sam.open(link)
        assert f"A sample of {SAMPLE} of the 120 new or changed rows" in shown
        assert re.search(r"at most \d+\.\d+% of the 120 .* are bad \(95% confidence", shown)
        assert re.search(r"Seed [0-9a-f]{16}", shown) and "not checked" in shown and "CC-BY-4.0" in shown
        sam.fill({"verdict": "Fix - I give the corrected text"})
        sam.fill({"corrected": ""})
        assert "Give the corrected completion" in sam.complaint()
        sam.fill({"corrected": CORRECTED, "reason": "Factually wrong"})
        sam.submit()
        for n in range(1, SAMPLE):
            shown = sam.wait_for_another(shown)
            word = {"verdict": "Reject", "reason": ["Off topic"]} if n == 1 else {"verdict": "Approve as is"}
            sam.fill(word)
            sam.submit()
        read = {t["id"]: t["data"] for t in label_studio.tasks(place(link))}
        corrected, rejected = (read[i]["record_id"] for i in sorted(read)[:2])

        # Version B: exactly those two changes, made by the platform; the source stays as it came in.
        waits = awaited(ftaas)
        assert {w["asset"] for w in waits.values()} == {"dataset_sign_off"} and set(waits) == {"sme", "rai"}
        version_b = made()["dataset"]
        store = Store(settings.load().store_path)
        found = diff.compare(store.get(version_a), store.get(version_b))
        assert found.counts == {"same": 118, "changed": 1, "edited": 0, "came": 0, "went": 1}
        assert [(c["record_id"], c["after"]["answer"]) for c in found.changed] == [(corrected, CORRECTED)]
        assert [r["record_id"] for r in found.went] == [rejected]
        assert source.read_bytes() == came_in

        # Both see what they sign: the sample and what it supports, what differs from A, each their own side.
        for reviewer, role in ((sam, "sme"), (rita, "rai")):
            shown = reviewer.open(waits[role]["link"])
            told = label_studio.tasks(place(waits[role]["link"]))[0]["data"]
            assert f"{version_a[:12]} to {version_b[:12]}" in shown and made()["splits"] in shown
            assert re.search(r"Rows corrected by reviewers\s+1\s+Rows rejected by reviewers\s+1\s", shown)
            assert re.search(
                rf"Rows asked about\s+{SAMPLE} of 120\s+Seed of the sample\s+[0-9a-f]{{16}}", shown
            )
            assert "approve 6, fix 1, reject 1" in shown
            assert re.search(r"2 of 8 rows drawn by lot are bad: at most \d+\.\d+% .*95% confidence", shown)
            assert "Approve for training" in shown and told["subject"]["digest"] == made()["splits"]
        assert all(w in shown for w in ("not checked", "CC-BY-4.0", "written by our own staff", "Plant 7"))
        sam.fill(
            {
                "decision": "Approve for training",
                "checks": ["I looked at the row review result and the rejected rows"],
                "comment": "read all eight, mended one",
            }
        )
        sam.submit()
        rita.fill({"decision": "Approve for training", "comment": "sources are ours"})
        assert "Tick the points you checked" in rita.complaint()
        rita.fill(
            {
                "checks": [
                    "Source and licence allow this use",
                    "I accept that what says 'not checked' was not looked for",
                ]
            }
        )
        rita.submit()

        # Signed, it trains, is released, runs in staging, and waits for the approver of production.
        waits = awaited(ftaas)
        assert waits["approver"]["asset"] == "approval_production"
        line = open_line("codes", settings.load())
        adapter = line.adapter(line.project.recipes[0])
        assert adapter is not None and adapter.content["splits"] == made()["splits"]
        signed = {e.role: e for e in entries("decision")}
        assert {r: e.actor for r, e in signed.items()} == {"sme": SAM, "rai": RITA}
        assert signed["sme"].body["comment"] == "read all eight, mended one"
        assert all(e.body["via"] == "label_studio" and e.body["saw"] for e in signed.values())

        # Sara approves in Alex's name. It is refused, the ledger says why, and nothing goes to production.
        link = waits["approver"]["link"]
        (task,) = label_studio.tasks(place(link))
        forged: Result = {"decision": "approve", "risk": "low", "comment": "fine"}
        names = [label_studio.user(p) for p in (SARA, ALEX)]
        names[0].annotate(place(link), task["data"][KEY], forged, forged_as=names[1])
        assert awaited(ftaas)["approver"]["asset"] == "approval_production"
        (refused,) = entries("answer_refused")
        by, last_by = names[1].id, names[0].id
        assert refused.body["reason"] == f"account {last_by} wrote it in the name of account {by}"
        assert {e.role for e in entries("decision")} == {"sme", "rai"}
        assert not [e for e in entries("deployment") if e.environment == "production"]

        # Alex himself. Label Studio takes the question for answered by him, so he opens it from the list.
        shown = alex.anew(link, task["id"])
        assert "May this release serve in production?" in shown and "served equals evaluated" in shown
        assert all(p in shown for p in (SAM, RITA)) and "Model card" in shown
        alex.fill({"decision": "Approve", "risk": "Low", "comment": "better than the base"})
        alex.submit()
        done = ftaas("run", "codes", "--json")
        assert done.code == 0, done.stdout + done.stderr
        assert ftaas("ask", "codes", "Say what X101 means.", "--json").code == 0
        assert ftaas("ledger", "verify", "--json").json["ok"]

        # Sam thinks again. What he signed holds no more, and the gate of the training is shut.
        sign_off = signed["sme"]
        at = f"{label_studio.url}/projects/{sign_off.body['evidence']['place']}/data"
        sam.again(at, label_studio.task(place(at), sign_off.body["review"]))
        sam.fill({"decision": "Reject"})
        sam.submit("Update")
        done = ftaas("run", "codes", "--json")
        assert done.code == 3 and f"SME {SAM} said 'reject'" in done.stdout
        assert states(ftaas)["dataset_sign_off"]["state"] == "refused"
        assert [e.body["decision"] for e in entries("decision") if e.role == "sme"] == ["approve", "reject"]
        assert f"SME {SAM} said 'reject'" in materialise_alone("codes", "adapter_lora")
        assert f"SME {SAM} said 'reject'" in shown_red("dataset_sign_off", "still_valid")

    change_one_byte(sign_off.body["evidence"]["answer_sha256"].encode())
    found = ftaas("ledger", "verify", "--json")
    assert found.code == 1 and not found.json["ok"]
    assert found.json["first_bad"]["seq"] == sign_off.seq


@pytest.fixture
def platform(codes: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`ftaas dev` beside the session's Label Studio, until the end of the test; no process of it is left."""
    # Other rows than in the test before: the Label Studio they share knows a question again by its rows.
    data = codes.parent / "data" / "rows.jsonl"
    data.write_bytes(b"".join(data.read_bytes().splitlines(keepends=True)[:100]))
    with dev_server() as dev:
        yield dev


def test_with_the_daemon_a_sign_off_in_label_studio_starts_the_training_within_a_minute(
    platform: "subprocess.Popen[bytes]", ftaas: Run, label_studio: Studio, tmp_path: Path
) -> None:
    from pictures import Ui, chromium

    sam, rita = label_studio.user(SAM), label_studio.user(RITA)
    rows = awaited(ftaas)["sme"]
    if chromium() or os.environ.get("FTAAS_CI"):  # the asset itself says who is awaited, and where
        with Ui(settings.load().port_dagster, "codes", tmp_path) as ui:
            shown = ui.metadata("row_review_request")
            assert SAM in shown and rows["since"] in shown and rows["link"] in shown
    for task in label_studio.tasks(place(rows["link"])):
        sam.annotate(place(rows["link"]), task["data"][KEY], {"verdict": "approve"})

    # Nobody runs anything: the daemon takes the verdicts in and asks for the sign-offs.
    wait_for(lambda: {r.kind for r in sign_offs()} == {"sme", "rai"}, 120)
    for round_ in sign_offs():
        person = sam if round_.kind == "sme" else rita
        person.annotate(round_.opened.place, round_.about["review"], SIGNED[round_.kind])
    signed = time.monotonic()

    def training() -> bool:
        family = psutil.Process(platform.pid).children(recursive=True)
        return any("ftaas_pipelines.stages.train" in command_line(p) for p in family)

    wait_for(training, 60)
    print(f"training started {time.monotonic() - signed:.0f} s after the second sign-off")
    wait_for(lambda: bool(entries("release")), 200)


def sign_offs() -> list[RoundState]:
    """The sign-offs that are open in Label Studio."""
    found = round_log.states(open_ledger(settings.load()), "codes", ("sme", "rai"))
    return [r for r in found if r.state == "open"]


# -- what these tests ask and do ---------------------------------------------------------------------


def awaited(ftaas: Run) -> dict[str, dict[str, Any]]:
    """Run the line up to where it waits; returns who is awaited, by role."""
    done = ftaas("run", "codes", "--json", timeout_s=400)
    assert done.code == 3, done.stdout + done.stderr
    found = {w["role"]: w for w in done.json["waiting"]}
    assert all(w["link"] in done.stdout and w["who"] and w["since"] for w in found.values())
    return found


def made() -> dict[str, str]:
    """Digests of dataset and splits as they are now."""
    line = open_line("codes", settings.load())
    return {name: a.digest for name, a in (("dataset", line.dataset), ("splits", line.splits)) if a}


def entries(kind: str) -> list[Entry]:
    return open_ledger(settings.load()).entries(kind, project="codes", authentic=True)


def place(link: str) -> str:
    """The Label Studio project that a link leads to."""
    found = re.search(r"/projects/(\d+)/", link)
    assert found
    return found[1]


def shown_red(asset: str, check: str) -> str:
    """What Dagster shows of a check that failed the last time it was looked at."""
    import dagster as dg

    from ftaas_pipelines.cli import dagster_run

    instance = dagster_run.open_instance(settings.load())
    key = dg.AssetCheckKey(dg.AssetKey(["codes", asset]), check)
    (record,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    found = record.evaluation
    assert found is not None and not found.passed
    return str(found.description)


def change_one_byte(of: bytes) -> None:
    """Change one byte of the ledger's file, as somebody would who can write it."""
    path = Path(settings.load().ledger.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    stored = bytearray(path.read_bytes())
    assert stored.count(of) == 1
    stored[stored.index(of)] ^= 1
    path.write_bytes(stored)
