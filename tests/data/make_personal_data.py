# ruff: noqa: E501
"""Writes personal_data.jsonl: 500 texts and where personal data stands in them. Nobody's real data.

    python tests/data/make_personal_data.py

Values come from ranges reserved for tests and fiction (example.com, 555-01xx, TEST-NET, test cards,
Ofcom's and the Bundesnetzagentur's fictional numbers), or are made up with a right check digit. The
first 250 rows are for developing detectors, the last 250 only for measuring them: their templates differ,
and a quarter of their values are written in ways (`UNUSUAL`) that the first half does not show.
A text is a template; `{kind}` places a value of this kind, `{-kind}` one that is none.
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

from stdnum import iban, luhn
from stdnum.es import dni
from stdnum.fr import nir
from stdnum.gb import nhs

ROWS = 500
Draw = Callable[[random.Random], str]


def digits(r: random.Random, n: int) -> str:
    return "".join(r.choice("0123456789") for _ in range(n))


def grouped(text: str, sizes: list[int], by: str) -> str:
    parts, start = [], 0
    for size in sizes:
        parts.append(text[start : start + size])
        start += size
    return by.join([*parts, text[start:]] if text[start:] else parts)


def email(r: random.Random) -> str:
    first, last = (
        r.choice(["ann", "bob", "carla", "d.ivan", "eva", "françois"]),
        r.choice(["lee", "muster", "o_neil"]),
    )
    host = r.choice(
        ["example.com", "example.org", "mail.example.net", "beispiel.example", "dept.example.co.uk"]
    )
    return r.choice(
        [f"{first}.{last}@{host}", f"{first}+{digits(r, 2)}@{host}", f"{last}{digits(r, 3)}@{host}"]
    )


def phone(r: random.Random) -> str:
    area, tail = r.choice(["202", "212", "415", "617"]), f"01{digits(r, 2)}"
    return r.choice(
        [
            f"({area}) 555-{tail}",
            f"{area}-555-{tail}",
            f"+1 {area} 555 {tail}",
            f"+1-{area}-555-{tail}",
            f"{area}.555.{tail}",
            f"+44 20 7946 0{digits(r, 3)}",
            f"020 7946 0{digits(r, 3)}",
            f"+49 30 23125 {digits(r, 3)}",
            f"030 23125{digits(r, 3)}",
            f"+33 1 99 00 {digits(r, 2)} {digits(r, 2)}",
            f"01 99 00 {digits(r, 2)} {digits(r, 2)}",
            f"01.99.00.{digits(r, 2)}.{digits(r, 2)}",
            f"+44 (0)20 7946 0{digits(r, 3)}",
        ]
    )


def spoken_phone(r: random.Random) -> str:
    """Only a word before it makes it a phone."""
    return r.choice(
        [
            f"555-01{digits(r, 2)}",
            f"202 555 01{digits(r, 2)}",
            f"03023125{digits(r, 3)}",
            f"910 000 {digits(r, 3)}",
        ]
    )


def credit_card(r: random.Random) -> str:
    start, length, sizes = r.choice(
        [
            ("411111", 16, [4, 4, 4, 4]),
            ("555555", 16, [4, 4, 4, 4]),
            ("378282", 15, [4, 6, 5]),
            ("601111", 16, [4] * 4),
        ]
    )
    body = start + digits(r, length - 7)
    number = body + luhn.calc_check_digit(body)
    return r.choice([number, grouped(number, sizes, " "), grouped(number, sizes, "-")])


def an_iban(r: random.Random) -> str:
    country, bank = r.choice(
        [("DE", digits(r, 18)), ("GB", "TEST" + digits(r, 14)), ("NL", "TEST" + digits(r, 10))]
    )
    number = f"{country}{iban.calc_check_digits(country + '00' + bank)}{bank}"
    return r.choice([number, " ".join(re.findall(".{1,4}", number))])


def ssn(r: random.Random) -> str:
    return f"{r.randint(100, 600)}-{r.randint(10, 99)}-{r.randint(1000, 9999)}"


def nhs_number(r: random.Random) -> str:
    while True:
        number = f"999{digits(r, 7)}"  # the range of test patients
        if nhs.is_valid(number):
            return grouped(number, [3, 3, 4], r.choice([" ", "", "-"]))


def spanish(r: random.Random) -> str:
    number = digits(r, 8)
    return number + dni.calc_check_digit(number)


def french(r: random.Random) -> str:
    number = (
        f"{r.choice('12')}{digits(r, 2)}{r.randint(1, 12):02d}{r.randint(10, 19)}{digits(r, 3)}{digits(r, 3)}"
    )
    number += nir.calc_check_digits(number)
    return r.choice([number, grouped(number, [1, 2, 2, 2, 3, 3, 2], " ")])


def ip_address(r: random.Random) -> str:
    net = r.choice(["192.0.2", "198.51.100", "203.0.113"])
    return r.choice(
        [f"{net}.{r.randint(1, 254)}"] * 2 + [f"2001:db8::{r.randint(1, 65535):x}", "2001:db8:0:1::42"]
    )


def vin(r: random.Random) -> str:
    values = dict(
        zip(
            "ABCDEFGHJKLMNPRSTUVWXYZ",
            [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 7, 9, 2, 3, 4, 5, 6, 7, 8, 9],
            strict=True,
        )
    )
    weights = [8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2]
    made = "1T" + "".join(r.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(6)) + "0AA" + digits(r, 6)
    rest = sum((int(c) if c.isdigit() else values[c]) * w for c, w in zip(made, weights, strict=True)) % 11
    return made[:8] + ("X" if rest == 10 else str(rest)) + made[9:]


def imei(r: random.Random) -> str:
    body = "001012" + digits(r, 8)
    return body + luhn.calc_check_digit(body)


def secret(r: random.Random) -> str:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    some = lambda n: "".join(r.choice(letters) for _ in range(n))  # noqa: E731
    return r.choice(
        [
            "AKIA" + some(16).upper(),
            "ghp_" + some(36),
            "glpat-" + some(20),
            "sk-" + some(40),
            "xoxb-" + f"{digits(r, 12)}-{digits(r, 12)}-" + some(24).lower(),
            "sk_live_" + some(24),
            "hf_" + some(34),
        ]
    )


def dated(r: random.Random) -> str:
    y, m, d = r.randint(1940, 2025), r.randint(1, 12), r.randint(1, 28)
    english = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
    ]
    return r.choice(
        [
            f"{y}-{m:02d}-{d:02d}",
            f"{d:02d}.{m:02d}.{y}",
            f"{m}/{d}/{y}",
            f"{d} {english[m % 10]} {y}",
            f"{english[m % 10]} {d}, {y}",
            f"{d}. {r.choice(['Januar', 'März', 'Oktober', 'Dezember'])} {y}",
            f"{d} {r.choice(['février', 'août', 'décembre'])} {y}",
            f"{d} de {r.choice(['enero', 'mayo', 'diciembre'])} de {y}",
        ]
    )


def address(r: random.Random) -> str:
    n = r.randint(1, 300)
    return r.choice(
        [
            f"{n} Example Street",
            f"{n} Sample Avenue, Anytown, CA 90000",
            f"{n}B Old Mill Road",
            f"{n} North Test Blvd, Suite 4",
            f"Musterstraße {n}, 12345 Musterstadt",
            f"Beispielallee {n}",
            f"Musterweg {n}, 54321 Beispielhausen",
            f"{n}, rue de la Gare, 75000 Exempleville",
            f"{n} avenue des Exemples",
            f"Calle Ejemplo {n}, 28000 Pueblo",
            f"Avenida de la Prueba {n}",
        ]
    )


KINDS: dict[str, Draw] = {
    "email": email,
    "phone": phone,
    "spoken_phone": spoken_phone,
    "credit_card": credit_card,
    "iban": an_iban,
    "ssn": ssn,
    "nhs": nhs_number,
    "dni": spanish,
    "nir": french,
    "ip_address": ip_address,
    "medical_record_number": lambda r: r.choice(
        [digits(r, 7), f"M-{digits(r, 6)}", f"{digits(r, 3)}-{digits(r, 4)}"]
    ),
    "vehicle_id": vin,
    "mac": lambda r: "00:00:5E:00:53:" + f"{r.randint(0, 255):02X}",
    "imei": imei,
    "secret": secret,
    "url": lambda r: (
        r.choice(["https://", "http://", "www."]) + f"example.{r.choice(['com', 'org'])}/" + digits(r, 3)
    ),
    "date": dated,
    "address": address,
    "age_over_89": lambda r: str(r.randint(90, 109)),
}
ENTITY = {
    "spoken_phone": "phone", "ssn": "national_id", "nhs": "national_id", "dni": "national_id",
    "nir": "national_id", "mac": "device_id", "imei": "device_id",
}  # fmt: skip
SECRETS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
UNUSUAL: dict[str, Draw] = {
    "email": lambda r: r.choice(["ann (at) example.com", "Ann.Lee@EXAMPLE.ORG", "o'neil@example.com", "a@example.museum"]),
    "phone": lambda r: r.choice([f"+4420794600{digits(r, 2)}", f"1-800-555-01{digits(r, 2)}", f"0207 946 0{digits(r, 3)}", f"+1 (212) 555-01{digits(r, 2)} ext. 7", f"212 - 555 - 01{digits(r, 2)}"]),
    "spoken_phone": lambda r: r.choice([f"202555 01{digits(r, 2)}", f"+1202555 01{digits(r, 2)}"]),
    "credit_card": lambda r: r.choice(["4111.1111.1111.1111", "4111 111111 111111", "4012888888881881"]),
    "iban": lambda r: r.choice(["de89370400440532013000", "GB82-WEST-1234-5698-7654-32", "NL91ABNA0417164300"]),
    "ssn": lambda r: r.choice([f"{r.randint(100, 600)} {r.randint(10, 99)} {digits(r, 4)}", f"{r.randint(100, 600)}{r.randint(10, 99)}{digits(r, 4)}"]),
    "ip_address": lambda r: r.choice(["2001:0db8:85a3:0000:0000:8a2e:0370:7334", f"192.0.2.{digits(r, 1)}", "203.000.113.007"]),
    "medical_record_number": lambda r: r.choice([f"{digits(r, 8)}", f"A{digits(r, 6)}", f"{digits(r, 2)}-{digits(r, 2)}-{digits(r, 2)}"]),
    "mac": lambda r: "00-00-5e-00-53-" + f"{r.randint(0, 255):02x}",
    "secret": lambda r: r.choice(["github_pat_" + "".join(r.choice(SECRETS) for _ in range(40)), "AIza" + "".join(r.choice(SECRETS) for _ in range(35)), "".join(r.choice("0123456789abcdef") for _ in range(32))]),
    "url": lambda r: r.choice(["HTTPS://EXAMPLE.COM/a?b=1", "example.org/path/page", "ftp://files.example.net/x.zip"]),
    "date": lambda r: r.choice(["12-Mar-2021", "3/4/98", "2019年3月4日", "the 4th of July, 1999", "20230415", "März 2020"]),
    "address": lambda r: r.choice(["PO Box 1234, Anytown", "Flat 2, 14 Sample Gardens", "Am Beispiel 7, 12345 Musterstadt", "One Example Plaza", "C/ Ejemplo, 12"]),
    "age_over_89": lambda r: r.choice(["ninety-four", "101"]),
}  # fmt: skip
NOT: dict[str, Draw] = {
    "part": lambda r: r.choice(
        [f"{digits(r, 3)}-{digits(r, 3)}-{digits(r, 3)}", f"{digits(r, 4)} {digits(r, 3)} {digits(r, 3)}", f"6ES7 {digits(r, 3)}-1BE40-0XB0", digits(r, 10), digits(r, 11)]
    ),
    "fault": lambda r: r.choice(["H442", "E-1204", "P0301", f"SRVO-{digits(r, 3)}", f"F{digits(r, 5)}", "0x80070005"]),
    "version": lambda r: f"{r.randint(1, 30)}.{r.randint(0, 20)}.{r.randint(0, 20)}.{r.randint(0, 99)}",
    "isbn": lambda r: f"978-3-16-{digits(r, 6)}-{digits(r, 1)}",
    "ean": lambda r: f"40{digits(r, 11)}",
    "money": lambda r: r.choice([f"€ {r.randint(1, 9)}.{digits(r, 3)}.{digits(r, 3)},00", f"${digits(r, 2)},{digits(r, 3)},{digits(r, 3)}", f"{r.randint(1, 99)} 000 000 EUR"]),
    "order": lambda r: r.choice([digits(r, 12), f"{digits(r, 5)}-{digits(r, 6)}", f"4500{digits(r, 6)}"]),
    "time": lambda r: f"{r.randint(0, 23):02d}:{digits(r, 1)}5:{r.randint(10, 59)}",
    "measure": lambda r: r.choice([f"{digits(r, 3)}.{digits(r, 2)} mm", f"{digits(r, 4)} rpm", f"1{digits(r, 2)} bar", f"{digits(r, 6)} h"]),
    "age": lambda r: str(r.randint(18, 89)),
    "hash": lambda r: "".join(r.choice("0123456789abcdef") for _ in range(40)),
    "card": lambda r: f"4111 1111 1111 111{r.choice('02345')}",
    "badiban": lambda r: f"DE00 {digits(r, 4)} {digits(r, 4)} {digits(r, 4)} {digits(r, 4)} {digits(r, 2)}",
    "count": lambda r: r.choice(["100", "95", "92", "1000"]),
}  # fmt: skip

FIRST = """
Please write to {email} about fault {-fault}.
My mail is {email}, my number {phone}.
Mail me: {email} or {email}!
Kontakt: {email}, Tel. {phone}
Écrivez à {email} ou appelez le {phone}.
Escriba a {email} o llame al {spoken_phone}.
Call me at {phone} after {-time}.
call {spoken_phone} when line 3 stops at {-time}
Tel: {spoken_phone} (shift lead), part no. {-part}
{"contact": "{email}", "phone": "{phone}", "fault": "{-fault}"}
Card {credit_card}, expires 11/29, amount {-money}
The customer paid with {credit_card} and lives at {address}.
Bitte überweisen Sie {-money} auf {iban}.
IBAN {iban}; the old one {-badiban} is closed.
Refund to {iban} please, order {-order}.
His SSN is {ssn}, born {date}.
NHS number {nhs}, seen on {date}
DNI {dni}, vive en {address}
Numéro de sécurité sociale {nir}
login from {ip_address} at {-time}, firmware {-version}
The gateway {ip_address} answered; {ip_address} did not.
MRN: {medical_record_number}, admitted {date}.
Patient ID {medical_record_number} is {age_over_89} years old.
VIN {vehicle_id} came in with {-fault}.
The car {vehicle_id} was returned on {date}.
MAC {mac} got the lease, host {ip_address}
IMEI {imei} is blocked
export AWS_KEY={secret}
my token is {secret}, do not share it
See {url} for the manual of part {-part}.
Aged {age_over_89}, she lives at {address}.
Er ist {age_over_89} Jahre alt und wohnt in der {address}.
The {-age} years old operator restarted pump {-fault} at {-time}.
Part {-part} replaces part number {-part}; fault {-fault}.
Version {-version} of the driver, build {-order}.
ISBN {-isbn}, EAN {-ean}, price {-money}
Order {-order} was sent, tracking number {-order}.
Torque {-measure}, then {-measure}; repeat {-count} times.
commit {-hash} fixes {-fault}
Serial number {-part}, lot {-order}, {-measure}
The test card {-card} is not valid, nor is {-badiban}.
Replace the seal every {-measure} or {-count} starts, see section 4.2.1.3.
Bestellnummer {-order}, Artikel-Nr. {-part}, Preis {-money}
Alarm {-fault} at {-time}: pressure {-measure}, code 100-200-300.
""".strip().splitlines()
SECOND = """
Could you send the report to {email}? Thanks.
From: {email}\\nTo: {email}\\nSubject: {-fault}
<{email}> reported {-fault} from {phone}
Rufen Sie mich unter {phone} an, Auftrag {-order}.
Mon numéro est le {phone}, ma commande {-order}
Mi móvil: {spoken_phone}, correo {email}
Reach the plant at {phone} or by fax {phone}.
You can ring {spoken_phone} until {-time}.
phone={spoken_phone};mail={email}
{"user": {"mail": "{email}", "card": "{credit_card}"}, "ok": true}
Charge {credit_card} for {-money}, reference {-order}.
Kreditkarte {credit_card}, Lieferung an {address}
Virement sur le compte {iban} avant le {date}
Account {iban} was debited {-money} on {date}.
Social security no {ssn}; phone {phone}
The NHS no is {nhs}. Address: {address}.
El cliente con NIF {dni} nació el {date}.
NIR : {nir}, né le {date}
Blocked {ip_address} after 5 attempts, release {-version}
ping {ip_address} -> {-measure}
Medical record number {medical_record_number}; follow-up {date}
patient no. {medical_record_number}, {age_over_89} years of age
Chassis {vehicle_id}, mileage {-measure}
Vehicle {vehicle_id}: software {-version} installed {date}
device {mac}, serial no {-part}
Phone IMEI: {imei}, order {-order}
password rotation: old key {secret}
curl -H "X-Token: {secret}" {url}
Read {url}, then restart; code {-fault}
Eine {age_over_89}-jährige Patientin, Adresse {address}, geboren {date}
Deliver to {address} before {date}.
A {-age}-year-old technician found {-fault} after {-measure}.
Teil {-part} ersetzt Teilenummer {-part}, Fehler {-fault}.
Firmware v{-version} breaks {-fault}; roll back to release {-version}.
The book (ISBN {-isbn}) costs {-money}; barcode {-ean}.
Invoice {-order}, ticket #{-order}, total {-money}
Set {-measure} at {-time}, wait {-count} cycles, then {-measure}.
sha1 {-hash} does not match {-hash}
S/N: {-part} batch {-order} shows {-fault}
Numbers such as {-card} fail the check, as does {-badiban}.
Commande n° {-order}, référence {-part}, total {-money}
Pedido {-order}, pieza {-part}, error {-fault} a las {-time}
Between {-time} and {-time} the counter rose by {-money}.
Step 1 2 3 4 5 6 7 8 9: turn {-count} degrees, {-measure}.
""".strip().splitlines()
PLACE = re.compile(r"\{(-?[a-z_0-9]+)\}")


def row(template: str, r: random.Random, unusual: float) -> dict[str, object]:
    text, spans, end = "", [], 0
    for match in PLACE.finditer(template):
        text += template[end : match.start()]
        name = match.group(1)
        draw = NOT[name[1:]] if name.startswith("-") else KINDS[name]
        if r.random() < unusual:
            draw = UNUSUAL.get(name, draw)
        value = draw(r)
        if not name.startswith("-"):
            spans.append({"kind": ENTITY.get(name, name), "start": len(text), "end": len(text) + len(value)})
        text += value
        end = match.end()
    return {"text": (text + template[end:]), "spans": spans}


def made() -> str:
    """The whole file, always the same."""
    r = random.Random(20261120)
    half = range(ROWS // 2)
    rows = [row(FIRST[i % len(FIRST)], r, 0.0) for i in half]
    rows += [row(SECOND[i % len(SECOND)].replace("\\n", "\n"), r, 0.25) for i in half]
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)


if __name__ == "__main__":
    Path(__file__).with_name("personal_data.jsonl").write_text(made(), encoding="utf-8")
