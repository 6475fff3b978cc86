"""Places in the syntax and concepts, on small programs."""

import re
import sys

import numpy as np
import pytest

from saelineage.labels import syntax
from saelineage.labels.annotations import CONCEPTS
from saelineage.labels.syntax import Grammar

PYTHON = """\
x: int = y = f(z, k=1)
self.a, (c[i], *d) = 1, 2
n += 1
try:
    raise ValueError('Error', b) from e
except (KeyError, m.E) as err:
    assert x == 1
finally:
    MyException(1)
def f(a=1): pass
"""
LUA = """\
local x, y = 1, {a = 2}
t.b, t[i] = 3, 4
local z
local ok, e = pcall(error, 'assert')
assert(x == 1)
local c <const> = 5
function g(a) t:error(1) error('y') end
for n = 1, 2 do end
"""


def words(language: str, program: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each word or sign of a program with its properties."""
    grammar = Grammar(language)
    matches = list(re.finditer(r"\w+|[^\w\s]+", program))
    states = grammar.states_at(program, np.array([match.start() for match in matches]))
    return [(match.group(), grammar.states[state]) for match, state in zip(matches, states, strict=True)]


def of_concept(language: str, program: str, concept: str) -> str:
    """The words of a program that belong to a concept."""
    return " ".join(word for word, properties in words(language, program) if ("concept", concept) in properties)


def test_concepts_have_these_words():
    for language, program, concept, expected in [
        ("python", PYTHON, "assignment target", "x y self a c d n"),
        ("python", PYTHON, "assignment =", "= = = +="),
        ("python", PYTHON, "assignment", "x = y = self a c d = n +="),
        ("python", PYTHON, "exception", "try raise ValueError except KeyError m E finally MyException"),
        ("lua", LUA, "assignment target", "x y t b t z ok e c"),
        ("lua", LUA, "assignment =", "= = = ="),
        ("lua", LUA, "assignment", "x y = t b t = z ok e = c ="),
        ("lua", LUA, "exception", "pcall assert error"),
        ("lua", "raise = try", "exception", ""),
        ("python", "pcall(f)\nfor i in x: g(i)", "assignment", ""),
    ]:
        assert of_concept(language, program, concept) == expected, (language, concept)


def test_all_concepts_have_a_sentence():
    concepts = {
        name
        for language, program in (("python", PYTHON), ("lua", LUA))
        for _, properties in words(language, program)
        for kind, name in properties
        if kind == "concept"
    }
    assert concepts == set(CONCEPTS)


def test_a_place_is_named_by_the_innermost_node_and_the_three_around_it():
    program = "def f(a):\n    return g(x)\n"
    x = dict(words("python", program))["x"]
    assert x == [
        ("syntax", "python: identifier in argument_list"),
        ("syntax", "python: inside argument_list"),
        ("syntax", "python: inside call"),
        ("syntax", "python: inside return_statement"),
    ]
    assert dict(words("lua", "local t = {}"))["local"][0] == ("syntax", "lua: local in variable_declaration")


def test_text_between_the_parts_of_a_node_is_in_the_node():
    # The \n is an escape_sequence in string_content; the text around it has no node of its own.
    program = "s = 'ab\\ncd'"
    grammar = Grammar("python")
    states = grammar.states_at(program, np.array([program.index("ab"), program.index("\\"), program.index("cd")]))
    places = [grammar.states[state][0][1] for state in states]
    assert places[0] == places[2] == "python: string_content in string"
    assert places[1] == "python: escape_sequence in string_content"


def test_characters_of_several_bytes_do_not_shift_what_follows():
    program = "é = '😀ü'; wert = 2"
    assert of_concept("python", program, "assignment target") == "é wert"


def test_no_more_than_the_first_characters_are_parsed(monkeypatch):
    monkeypatch.setattr(syntax, "MAX_CHARACTERS", 6)
    grammar = Grammar("python")
    states = grammar.states_at("a = 1\nb = 2\n", np.array([0, 6, 11]))
    assert ("concept", "assignment target") in grammar.states[states[0]]
    assert states[1:].tolist() == [-1, -1]


def test_an_empty_document_has_no_place():
    grammar = Grammar("lua")
    assert grammar.states_at("", np.zeros(0, dtype=np.int64)).tolist() == []
    assert grammar.states_at(" ", np.array([1])).tolist() == [-1]


@pytest.mark.parametrize("language", ["python", "lua"])
def test_any_text_is_parsed(language: str):
    # The nesting is deeper than Python's recursion limit.
    n = sys.getrecursionlimit() + 200
    texts = ["\0\0 x = 1", "(" * n, "[" * n, '"' * (n + 1), "f(" * n + "x" + ")" * n, "\u202ex = 1\u2028", "<script>"]
    for text in texts:
        grammar = Grammar(language)
        states = grammar.states_at(text, np.arange(len(text)))
        assert states.max() < len(grammar.states), text[:9]
        assert all(len(properties) <= 1 + syntax.LEVELS + len(CONCEPTS) for properties in grammar.states), text[:9]


def test_earlier_texts_change_no_place():
    program = "x = 1\nprint(x)\n"
    used, fresh = Grammar("python"), Grammar("python")
    used.states_at("class A: pass", np.array([0]))
    characters = np.arange(len(program))
    names = [[grammar.states[state] for state in grammar.states_at(program, characters)] for grammar in (used, fresh)]
    assert names[0] == names[1]
