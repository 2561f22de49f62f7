"""Personal data, secrets and toxicity in records: found, reported by kind and place, treated by policy.

Texts are searched in batches: one RE2 pass (pyarrow) tells which texts may hold anything, one pass per
detector among those tells what, and only then does a detector look. Of overlapping places the longest
wins. A value that one place of a record proved is treated wherever the record repeats it.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ftaas_pipelines.data.privacy import (
    contacts,
    credentials,
    identifiers,
    particulars,
    person_names,
    profiles,
    toxicity,
)
from ftaas_pipelines.data.privacy.findings import Detector, Finding, Span, counts
from ftaas_pipelines.data.privacy.texts import places_of, readable
from ftaas_pipelines.data.privacy.treatment import StandIns, rewrite
from ftaas_pipelines.data.rows.records import Record
from ftaas_pipelines.projects.dataset import Privacy, Treatment

# Of places equally long the first detector's holds: what a check digit proved goes before mere shape.
_BUILT_IN = (
    credentials.SECRET,
    identifiers.CREDIT_CARD,
    identifiers.IBAN,
    identifiers.NATIONAL_ID,
    identifiers.MEDICAL_RECORD_NUMBER,
    identifiers.VEHICLE_ID,
    identifiers.DEVICE_ID,
    contacts.EMAIL,
    contacts.PHONE,
    contacts.IP_ADDRESS,
    contacts.URL,
    particulars.DATE,
    particulars.ADDRESS,
    particulars.AGE_OVER_89,
)
# Gates of one pass. All in one would be one pass less each, but their joint automaton outgrows RE2's cache
# on varied text: 124 ns a character, against 17 for these groups (9 MB of manuals and chats).
_TOGETHER = (
    (
        contacts.EMAIL,
        contacts.URL,
        contacts.IP_ADDRESS,
        identifiers.IBAN,
        identifiers.CREDIT_CARD,
        identifiers.VEHICLE_ID,
        identifiers.DEVICE_ID,
        identifiers.MEDICAL_RECORD_NUMBER,
        particulars.AGE_OVER_89,
    ),
    (contacts.PHONE, particulars.DATE, particulars.ADDRESS),
)
_RECURRING = 4  # characters; a shorter value is too common to be looked for elsewhere


class Hit(NamedTuple):
    """What a detector saw, and in which of the record's texts (counted from 0)."""

    text: int
    detector: Detector
    span: Span


class Screen:
    """Looks at records, and treats what it finds as the project's `dataset.privacy` says.

    Args:
        options: the policy.
        models: folders of the models `names` and `toxicity`, for those that are configured.

    Attributes:
        checked: names of the detectors that run.
        not_checked: names of those that do not, and what the profile asks for and no detector can see.

    Raises:
        InputInvalid: a model has no label for what it should find.
    """

    def __init__(self, options: Privacy, models: Mapping[str, Path] | None = None):
        models = models or {}
        self._treatment = profiles.treatments(options)
        self._drops_toxic = options.toxicity == "drop"
        running = [d for d in _BUILT_IN if d.entity in self._treatment]
        if "names" in models:
            running.append(person_names.recogniser(models["names"]))
        if options.toxicity != "off":
            running += toxicity.detectors()
            if "toxicity" in models:
                running.append(toxicity.classifier(models["toxicity"]))
        self._detectors = tuple(running)
        together = ([d for d in running if d in group] for group in _TOGETHER)
        alone = [[d] for d in running if not any(d in group for group in _TOGETHER)]
        self._searched_together = [group for group in (*together, *alone) if group]
        self.checked = tuple(dict.fromkeys(d.name for d in running))
        known = [*(d.name for d in _BUILT_IN), "person_names", "toxicity"]
        self.not_checked = (
            *(name for name in known if name not in self.checked),
            *profiles.beyond_detectors(options),
        )

    def counts(self, found: Sequence[Finding]) -> dict[str, int | str]:
        """Findings by detector; "not checked" for all that this screen could not see."""
        return counts(found, self.checked, self.not_checked)

    def screen(self, records: Sequence[Record]) -> tuple[list[Finding], list[str | None]]:
        """Find, and treat in place.

        Returns:
            Findings on the texts as they came in, sorted; and for each record the reason to drop it:
            `personal_data`, `toxic` or None. A record to drop is left as it came in.
        """
        texts: list[str] = []
        owners: list[tuple[int, int]] = []  # of each text: the record's place in the batch, the text's in it
        for number, record in enumerate(records):
            for i, place in enumerate(places_of(record)):
                texts.append(readable(place.text))
                owners.append((number, i))
        hits: dict[int, list[Hit]] = {}
        for text, detector, span in self._search(texts):
            number, i = owners[text]
            hits.setdefault(number, []).append(Hit(i, detector, span))
        found: list[Finding] = []
        reasons: list[str | None] = [None] * len(records)
        for number in sorted(hits):
            of_record, reasons[number] = self._settle(records[number], hits[number])
            found += of_record
        found.sort(key=lambda f: (f.record_id, f.detector, f.field, f.start, f.end, f.kind))
        return found, reasons

    def may_find(self, column: Any) -> Any:
        """Which texts (an Arrow string array) may hold anything: numpy bool; the others certainly do not."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute

        compute: Any = pyarrow.compute  # its functions are made at run time
        found = np.zeros(len(column), np.bool_)
        for detectors in self._searched_together:
            gates = "|".join(f"(?:{d.gate})" for d in detectors)
            matched = compute.match_substring_regex(column, gates)
            found |= np.asarray(compute.fill_null(matched, pa.scalar(True)))
        return found

    def _search(self, texts: list[str]) -> Iterator[tuple[int, Detector, Span]]:
        """Every place that a detector sees: number of the text, detector, place."""
        import pyarrow as pa
        import pyarrow.compute

        compute: Any = pyarrow.compute  # its functions are made at run time
        column: Any = pa.array(texts, pa.large_string())
        for detectors in self._searched_together:
            gates = "|".join(f"(?:{d.gate})" for d in detectors)
            rows: list[int] = compute.indices_nonzero(
                compute.match_substring_regex(column, gates)
            ).to_pylist()
            fewer: Any = column.take(pa.array(rows, pa.int64()))
            for detector in detectors:
                matched = compute.match_substring_regex(fewer, detector.gate)
                for i in compute.indices_nonzero(matched).to_pylist():
                    for span in detector.find(texts[rows[i]]):
                        yield rows[i], detector, span

    def _settle(self, record: Record, hits: list[Hit]) -> tuple[list[Finding], str | None]:
        """The findings on one record, and the reason to drop it; treats it when there is none."""
        places = places_of(record)
        texts = [readable(place.text) for place in places]
        treated, kept = self._resolved([*hits, *self._repeats(texts, hits)])
        found = [
            Finding(
                record.record_id, hit.detector.name, hit.span.kind, places[hit.text].field,
                hit.span.start, hit.span.end, hit.detector.severity,
            )
            for hit in (*treated, *kept)
        ]  # fmt: skip
        if any(self._treatment_of(hit) == "drop" for hit in treated):
            return found, "personal_data"
        if self._drops_toxic and any(hit.detector.entity is None for hit in kept):
            return found, "toxic"
        if treated:
            self._treat(record, treated)
        return found, None

    def _treatment_of(self, hit: Hit) -> Treatment:
        return self._treatment[hit.detector.entity] if hit.detector.entity else "keep"

    def _repeats(self, texts: list[str], hits: list[Hit]) -> Iterator[Hit]:
        """The same values elsewhere in the record, where no word of context gives them away."""
        values: dict[str, Hit] = {}
        for hit in hits:
            value = texts[hit.text][hit.span.start : hit.span.end].casefold()
            if hit.detector.entity and hit.detector.recurs and len(value) >= _RECURRING:
                values.setdefault(value, hit)
        if not values:
            return
        known = {(hit.text, hit.span.start, hit.span.end) for hit in hits}
        longest_first = sorted(values, key=lambda value: (-len(value), value))
        pattern = re.compile(
            rf"(?<!\w)(?:{'|'.join(re.escape(value) for value in longest_first)})(?!\w)", re.IGNORECASE
        )
        for i, text in enumerate(texts):
            for match in pattern.finditer(text):
                first = values.get(match.group().casefold())
                if first and (i, *match.span()) not in known:
                    yield Hit(i, first.detector, Span(first.span.kind, *match.span()))

    def _resolved(self, hits: list[Hit]) -> tuple[list[Hit], list[Hit]]:
        """What is treated, none over another; and what is kept and not inside of that."""
        treated: list[Hit] = []
        kept: list[Hit] = []
        reported: list[Hit] = []
        order = {detector: i for i, detector in enumerate(self._detectors)}
        for hit in sorted(
            hits,
            key=lambda h: (h.span.start - h.span.end, h.text, h.span.start, order[h.detector], h.span.kind),
        ):
            if hit.detector.entity is None:
                reported.append(hit)
            elif self._treatment_of(hit) == "keep":
                kept.append(hit)
            elif not any(_overlap(hit, other) for other in treated):
                treated.append(hit)
        for hit in kept:
            inside = any(_within(hit, other) for other in treated)
            if not inside and not any(_overlap(hit, other) for other in reported if other.detector.entity):
                reported.append(hit)
        return treated, reported

    def _treat(self, record: Record, treated: list[Hit]) -> None:
        # What a record holds may be shared with others (a system message, a list of tools).
        record.messages, record.extra = copy.deepcopy(record.messages), copy.deepcopy(record.extra)
        stand_ins = StandIns(record.record_id)
        places = places_of(record)
        ordered = sorted(treated, key=lambda hit: (hit.text, hit.span.start))
        for i in sorted({hit.text for hit in ordered}):
            text = places[i].text
            here = [hit for hit in ordered if hit.text == i and hit.detector.entity]
            replacements = [
                stand_ins.of(
                    hit.detector.entity, self._treatment_of(hit), text[hit.span.start : hit.span.end]
                )
                for hit in here
                if hit.detector.entity
            ]
            places[i].holder[places[i].key] = rewrite(text, [hit.span for hit in here], replacements)


def _overlap(one: Hit, other: Hit) -> bool:
    return one.text == other.text and one.span.start < other.span.end and other.span.start < one.span.end


def _within(one: Hit, other: Hit) -> bool:
    return one.text == other.text and other.span.start <= one.span.start and one.span.end <= other.span.end
