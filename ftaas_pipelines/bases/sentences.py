"""Plain English sentences from templates and a small vocabulary.

CPython's docstrings have no "she", no "yesterday" and few past tenses. These sentences give both
bases everyday words and their endings; they come from nobody's data set.
"""

from __future__ import annotations

import random

NAMES = (
    "Ada Amir Anna Ben Carla Chen Clara Daniel Diego Elena Emma Farid Grace Hana Hugo Ines Ivan Jana "
    "Jonas Karim Laura Leo Lina Lucas Maria Marta Mei Mina Nadia Nora Omar Oscar Paul Petra Priya Rosa "
    "Sam Sara Sofia Tom Vera Victor Yuki Zoe"
).split()
NOUNS = (
    "account address agenda answer apple article assistant badge bag bicycle bill book bottle box bridge "
    "budget building bus cable calendar camera car card chair chart child city clock coat colleague "
    "company computer contract copy corner cup customer date deadline delivery department desk detail "
    "document door draft driver editor email employee engine engineer envelope error event exam example "
    "expert file flight floor folder form friend garden guest guide holiday hotel hour house idea invoice "
    "island issue item job journey key kitchen lamp laptop lawyer lesson letter library license list "
    "machine manager map market meal meeting member message minute mistake model month monitor morning "
    "name neighbour note number nurse office officer offer orange order package page painter paper parcel "
    "partner password person phone photo picture pilot plan plant policy price printer problem product "
    "program project question radio reason receipt recipe record reply report request result road room "
    "rule sample schedule school screen secretary seller server shelf shop signature sister song "
    "speaker station story street student supplier survey table task teacher team test ticket tool tower "
    "town train tree umbrella uncle uniform unit update user vendor village visitor warehouse week window "
    "woman word worker year"
).split()
ADJECTIVES = (
    "angry annual big blue broken busy careful cheap clean clear cold common correct dark different dirty "
    "early easy empty expensive fast final free full good green happy hard heavy honest important "
    "interesting large last late local long main modern monthly narrow new next noisy old open orange "
    "polite public quick quiet ready red rich sad safe second short simple slow small strong tall tired "
    "unusual urgent useful warm weak weekly white wide wrong young"
).split()
VERBS = (
    "accept add answer arrange ask book borrow bring build buy call cancel carry catch change check choose "
    "clean close collect copy count create deliver describe discuss draw drive explain fill find finish "
    "fix follow forget get give help hire hold improve invite join keep know lead learn leave like lose "
    "make mark measure meet move need notice offer open order pack paint pay plan prefer prepare print "
    "produce promise read receive record remember remove rent repair replace report request review save "
    "see sell send share show sign start stop study support take teach tell test thank throw train "
    "translate try understand update use visit wait want wash watch wear win write"
).split()
IRREGULAR_PAST = {
    "bring": "brought brought", "build": "built built", "buy": "bought bought", "catch": "caught caught",
    "choose": "chose chosen", "draw": "drew drawn", "drive": "drove driven", "find": "found found",
    "forget": "forgot forgotten", "get": "got got", "give": "gave given", "hold": "held held",
    "keep": "kept kept", "know": "knew known", "lead": "led led", "leave": "left left", "lose": "lost lost",
    "make": "made made", "meet": "met met", "pay": "paid paid", "read": "read read", "see": "saw seen",
    "sell": "sold sold", "send": "sent sent", "show": "showed shown", "take": "took taken",
    "teach": "taught taught", "tell": "told told", "throw": "threw thrown", "wear": "wore worn",
    "win": "won won", "write": "wrote written", "understand": "understood understood",
}  # fmt: skip
IRREGULAR_PLURAL = {"child": "children", "person": "people", "woman": "women", "shelf": "shelves"}
DOUBLED = {"plan", "stop", "get", "win", "forget"}
PLACES = (
    "in the office,at the station,near the bridge,in the kitchen,on the second floor,at home,in the city,"
    "behind the school,at the front desk,in the garden,on the table,in the meeting room,next to the door"
).split(",")
PAST_TIMES = "yesterday,last week,last month,two days ago,last night,on Monday,this morning".split(",")
NOW_TIMES = "every day,every week,on Fridays,each month,in the morning,now,today".split(",")
FUTURE_TIMES = "tomorrow,next week,next month,on Tuesday,soon,later today".split(",")
NUMBERS = "two three four five six seven eight nine ten twelve several many some".split()
UNCOUNTED = "advice equipment feedback furniture information money paper time water work".split()


def plural(noun: str) -> str:
    """Return the plural of a noun of the vocabulary."""
    if noun in IRREGULAR_PLURAL:
        return IRREGULAR_PLURAL[noun]
    return third_person(noun)


def third_person(verb: str) -> str:
    """Return the form after he, she or it."""
    if verb.endswith(("s", "x", "z", "ch", "sh")):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in "aeou":
        return verb[:-1] + "ies"
    return verb + "s"


def past(verb: str, participle: bool = False) -> str:
    """Return the simple past, or the past participle."""
    if verb in IRREGULAR_PAST:
        return IRREGULAR_PAST[verb].split()[participle]
    if verb in DOUBLED:
        return verb + verb[-1] + "ed"
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeou":
        return verb[:-1] + "ied"
    return verb + "ed"


def gerund(verb: str) -> str:
    """Return the form in -ing."""
    if verb in DOUBLED:
        return verb + verb[-1] + "ing"
    return (verb[:-1] if verb.endswith("e") and not verb.endswith("ee") else verb) + "ing"


def article(following: str) -> str:
    """Return 'a' or 'an' for the word that follows, by sound."""
    if following.startswith(("uni", "use", "u.s", "one")):
        return "a"
    if following.startswith(("hour", "honest")):
        return "an"
    return "an" if following[0] in "aeiou" else "a"


def _noun_phrase(rng: random.Random) -> tuple[str, bool]:
    """Return a phrase and whether it is plural."""
    noun, adjective = rng.choice(NOUNS), rng.choice(ADJECTIVES) + " " if rng.random() < 0.35 else ""
    kind = rng.random()
    if kind < 0.3:
        return f"{article(adjective or noun)} {adjective}{noun}", False
    if kind < 0.6:
        return (
            f"{rng.choice(['the', 'this', 'that', 'my', 'our', 'her', 'their', 'every'])} {adjective}{noun}",
            False,
        )
    if kind < 0.75:
        return f"{rng.choice(NUMBERS)} {adjective}{plural(noun)}", True
    if kind < 0.93:
        return f"{rng.choice(['the', 'these', 'those', 'my', 'our', 'his'])} {adjective}{plural(noun)}", True
    return f"{rng.choice(['some', 'the', 'more', 'enough'])} {rng.choice(UNCOUNTED)}", False


def _subject(rng: random.Random) -> tuple[str, bool]:
    kind = rng.random()
    if kind < 0.35:
        pronoun = rng.choice(["I", "you", "we", "they", "he", "she", "it"])
        return pronoun, pronoun in ("I", "you", "we", "they")
    if kind < 0.55:
        return rng.choice(NAMES), False
    if kind < 0.62:
        return f"{rng.choice(NAMES)} and {rng.choice(NAMES)}", True
    return _noun_phrase(rng)


def _be(subject: str, many: bool, *, was: bool = False) -> str:
    if was:
        return "were" if many and subject != "I" else "was"
    return "am" if subject == "I" else "are" if many else "is"


def _clause(rng: random.Random) -> str:
    subject, many = _subject(rng)
    verb, thing = rng.choice(VERBS), _noun_phrase(rng)[0]
    adjective, place = rng.choice(ADJECTIVES), rng.choice(PLACES)
    then, now, soon = rng.choice(PAST_TIMES), rng.choice(NOW_TIMES), rng.choice(FUTURE_TIMES)
    have, does = ("have", "do") if many else ("has", "does")
    return rng.choice(
        [
            f"{subject} {past(verb)} {thing} {then}",
            f"{then} {subject} {past(verb)} {thing}",
            f"{subject} {verb if many else third_person(verb)} {thing} {now}",
            f"{subject} will {verb} {thing} {soon}",
            f"{subject} {rng.choice(['can', 'must', 'should', 'may', 'could'])} {verb} {thing} {place}",
            f"{subject} {_be(subject, many)} {gerund(verb)} {thing} {rng.choice(['now', place])}",
            f"{subject} {_be(subject, many, was=rng.random() < 0.5)} {adjective} {place}",
            f"{subject} {have} {rng.choice(['', 'already ', 'never ', 'just '])}{past(verb, True)} {thing}",
            f"{subject} {does} not {verb} {thing}",
            f"{subject} did not {verb} {thing} {then}",
            f"there {'is' if _singular(thing) else 'are'} {thing} {place}",
            f"{subject} {'want' if many else 'wants'} to {verb} {thing} {rng.choice([soon, place])}",
            f"{thing} {'was' if _singular(thing) else 'were'} {past(verb, True)} {then}",
            f"please {verb} {thing} {soon}",
            f"{subject} {past(verb)} {thing} {place} before lunch",
        ]
    )


def _singular(phrase: str) -> bool:
    words = phrase.split()
    return words[0] in ("a", "an", "this", "that", "every") or not words[-1].endswith(("s", "en", "ople"))


def sentence(rng: random.Random) -> str:
    """Return one sentence, capitalised and with its full stop or question mark."""
    text = _clause(rng)
    kind = rng.random()
    if kind < 0.15:
        text = f"{text} {rng.choice(['and', 'but', 'because', 'so', 'when'])} {_clause(rng)}"
    elif kind < 0.25:
        subject, many = _subject(rng)
        text = f"{'do' if many else 'does'} {subject} {rng.choice(VERBS)} {_noun_phrase(rng)[0]}"
        return text[0].upper() + text[1:] + "?"
    return text[0].upper() + text[1:] + "."
