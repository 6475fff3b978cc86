"""A small template grammar: rules with alternatives, slots that bind words, and inherited word forms.

A rule is a name at the margin followed by indented alternatives, one per line. A line indented twice continues the one
above. In an alternative:

    [one|two|]      one of the inline alternatives; they nest
    {animal}        expand the rule, pick from the word list, or reuse the bound word of that name
    {animal.pl}     the same in one form; slots written {verb.@} inherit the form of their rule
    {x=animal}      pick a word that no name is bound to yet, and bind it to x
    {^animal}       with a capital letter
    a~              "a" or "an", chosen by `settle_articles` once the next word is known
    {n}             a line break
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import NamedTuple, TypeVar

Word = Mapping[str, str]
"""A lexicon entry: form name to text; the form "" is the default."""
Option = TypeVar("Option")

TOKEN = re.compile(r"[\[\]|]|\{[^}]*\}|[^\[\]|{]+")
SLOT = re.compile(r"\{(\^?)(?:(\w+)=)?(\w+)(?:\.(@|\w+))?\}")
ARTICLE = re.compile(r"\b([Aa])~ (\W?)(\w+)")
AN_DESPITE_CONSONANT = ("hour", "honest", "heir", "8", "11 ", "18", "x-ray")
A_DESPITE_VOWEL = ("uni", "use", "usu", "eu", "one", "once", "ukulele")


class Slot(NamedTuple):
    """A place in a template that is filled when a document is written."""

    name: str
    form: str
    bind: str
    capital: bool


class Choice(NamedTuple):
    """Inline alternatives, each a sequence of parts."""

    alternatives: "list[list[Part]]"


Part = str | Slot | Choice
"""A piece of an alternative: plain text, a slot or inline alternatives."""


class Rule(NamedTuple):
    """Named alternatives; the writer avoids using the same one twice in a document."""

    name: str
    alternatives: list[list[Part]]


Value = Rule | list[Word] | Word | str
"""Anything that a name in a template may stand for: a rule, a word list, a bound word or plain text."""


def parse_rules(text: str) -> dict[str, Rule]:
    """Parse rules in the syntax at the top of this module; a repeated name adds alternatives to its rule."""
    rules: dict[str, Rule] = {"n": Rule("n", [["\n"]])}
    for line in text.replace("\n        ", " ").splitlines():
        if not line.strip():
            continue
        if line[0] != " ":
            name = line.strip().rstrip(":")
            rules.setdefault(name, Rule(name, []))
        else:
            rules[name].alternatives.extend(_parse_alternatives(iter(TOKEN.findall(line.strip()))))
    return rules


def _parse_alternatives(tokens: Iterator[str]) -> list[list[Part]]:
    """Read alternatives up to their closing bracket or the end of the line."""
    alternatives: list[list[Part]] = [[]]
    for token in tokens:
        if token == "]":
            break
        if token == "|":
            alternatives.append([])
        elif token == "[":
            alternatives[-1].append(Choice(_parse_alternatives(tokens)))
        elif token[0] == "{":
            alternatives[-1].append(_parse_slot(token))
        else:
            alternatives[-1].append(token)
    return alternatives


def _parse_slot(token: str) -> Slot:
    match = SLOT.fullmatch(token)
    if match is None:
        raise ValueError(f"a slot must look like {{name}}, {{name.form}} or {{x=name}}, got {token!r}")
    capital, bind, name, form = match.groups()
    return Slot(name, form or "", bind or "", bool(capital))


class Writer:
    """Writes one document: the rules and word lists, a random source, and the words bound so far.

    All randomness comes from `Random.random`. Its sequence is fixed for a seed, while Python may change those of
    `choice` and `shuffle` between versions.
    """

    def __init__(self, rules: Mapping[str, Rule | list[Word]], rng: Random):
        self.rules = rules
        self.random: Callable[[], float] = rng.random
        self.bound: dict[str, Value] = {}
        self.used: set[tuple[str, int]] = set()

    def words(self, name: str) -> list[Word]:
        """Return the whole word list of this name, even if the name is bound."""
        words = self.rules[name]
        assert isinstance(words, list)
        return words

    def pick(self, options: Sequence[Option]) -> Option:
        """Return one of the options, each equally likely."""
        return options[int(self.random() * len(options))]

    def sample(self, options: Sequence[Option], n: int) -> list[Option]:
        """Return n different options in random order, or all of them if there are fewer."""
        rest = list(options)
        return [rest.pop(int(self.random() * len(rest))) for _ in range(min(n, len(rest)))]

    def number(self, low: int, high: int) -> int:
        """Return a whole number from low to high, both included."""
        return low + int(self.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.random() < probability

    def bind(self, **words: Value | int) -> None:
        """Bind names to words, word lists, rules or texts for the rest of the document."""
        for name, word in words.items():
            self.bound[name] = str(word) if isinstance(word, int) else word

    def fresh(self, words: Sequence[Word]) -> Word:
        """Return a word that no name is bound to, so that two characters are never the same."""
        taken = [id(word) for word in self.bound.values()]
        for _ in range(20):
            word = self.pick(words)
            if id(word) not in taken:
                break
        return word

    def write(self, name: str, form: str = "") -> str:
        """Expand the rule, word list or bound word of this name."""
        value = self.bound.get(name)
        return self._render(self.rules[name] if value is None else value, form)

    def lines(self, name: str, low: int, high: int, separator: str = " ") -> str:
        """Expand a rule several times, as many as a random number from low to high."""
        return separator.join([self.write(name) for _ in range(self.number(low, high))])

    def _render(self, value: Value, form: str) -> str:
        if isinstance(value, Rule):
            return self._sequence(self._alternative(value), form)
        if isinstance(value, list):
            return self.pick(value)[form]
        return value if isinstance(value, str) else value[form]

    def _alternative(self, rule: Rule) -> list[Part]:
        """Pick an alternative, preferably one that this document has not used yet."""
        n = len(rule.alternatives)
        first = int(self.random() * n)
        if n <= 3:
            return rule.alternatives[first]
        unused = ((first + step) % n for step in range(n) if (rule.name, (first + step) % n) not in self.used)
        index = next(unused, first)
        self.used.add((rule.name, index))
        return rule.alternatives[index]

    def _sequence(self, parts: list[Part], form: str) -> str:
        text = []
        for part in parts:
            if isinstance(part, str):
                text.append(part)
            elif isinstance(part, Slot):
                text.append(self._slot(part, form))
            else:
                text.append(self._sequence(self.pick(part.alternatives), form))
        return "".join(text)

    def _slot(self, slot: Slot, inherited: str) -> str:
        form = inherited if slot.form == "@" else slot.form
        value = self.bound.get(slot.name)
        if value is None:
            value = self.rules[slot.name]
        if slot.bind:
            value = self.fresh(value) if isinstance(value, list) else self._render(value, form)
            self.bound[slot.bind] = value
        text = self._render(value, form)
        return text[:1].upper() + text[1:] if slot.capital else text


def settle_articles(text: str) -> str:
    """Turn each `a~` into "a" or "an", depending on the sound that the next word starts with."""
    return ARTICLE.sub(lambda match: f"{article(match[1], match[3])} {match[2]}{match[3]}", text)


def article(a: str, word: str) -> str:
    """Return "a" or "an" for the next word, with the capitalisation of `a`.

    A list of exceptions is enough here because the lexicon is closed.
    """
    word = word.lower()
    vowel = word[0] in "aeiou" and not word.startswith(A_DESPITE_VOWEL)
    return a + "n" if vowel or word.startswith(AN_DESPITE_CONSONANT) or word == "11" else a


def curl_quotes(text: str) -> str:
    """Replace straight quotes by typographic ones, and a spaced hyphen by a dash."""
    text = re.sub(r'(^|[\s(])"', "\\1\u201c", text).replace('"', "\u201d")
    return text.replace("'", "\u2019").replace(" - ", " \u2013 ")
