"""Syntax: the place of a character in the grammar of Python or Lua, and its concepts.

tree-sitter does the parsing. It accepts any text and marks as ERROR what is not in the grammar. The place of a
character, called a state here, is that of the innermost node around it. States have properties in words:

- `syntax`: "python: identifier in call" is the type of the innermost node and of the node around it; "python: inside
  parameters" stands for each of the first `LEVELS` named nodes around it, without the root.
- `concept`: a property with the same meaning in both languages (`annotations.CONCEPTS`), taken from Horn & Elliott
  (arXiv 2410.12391), figures 3 and 4.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import tree_sitter_lua
import tree_sitter_python
from jaxtyping import Int, Integer
from tree_sitter import Language, Node, Parser, TreeCursor

LEVELS = 3
MAX_CHARACTERS = 100_000
"""Characters of a document that are parsed; Lua's parser takes quadratic time for some (40 s for 100,000 brackets)."""
TARGET, RAISED = "target", "raised"
"""Roles of the names below a node: assigned to, or an exception that is raised or caught."""


class Rules(NamedTuple):
    """Rules that find concepts in the trees of one language."""

    language: Callable[[], object]
    """Gives the grammar, as tree-sitter's pointer."""
    begins: Mapping[tuple[str, str], str]
    """Role of a child, by the types of its parent and of the child or its field ("field:left")."""
    passes: Mapping[str, frozenset[str]]
    """Per role, the nodes that pass it on to their children."""
    drops: frozenset[tuple[str, str]]
    """Parent's type and child's field where no role is passed on or begun."""
    operators: frozenset[tuple[str, str]]
    """Parent's type and child's field or type where the child is the = of an assignment."""
    keywords: frozenset[str]
    """Keywords of the concept of exceptions."""
    called: frozenset[bytes]
    """Functions whose call is of the concept of exceptions."""
    endings: tuple[bytes, ...]
    """Endings of the names of exceptions."""


LANGUAGES = {
    "python": Rules(
        language=tree_sitter_python.language,
        begins={
            ("assignment", "field:left"): TARGET,
            ("augmented_assignment", "field:left"): TARGET,
            ("raise_statement", ""): RAISED,
            ("except_clause", "field:value"): RAISED,
        },
        passes={
            TARGET: frozenset(
                {"pattern_list", "tuple_pattern", "list_pattern", "list_splat_pattern", "attribute", "subscript"}
            ),
            RAISED: frozenset({"call", "attribute", "tuple", "as_pattern", "parenthesized_expression"}),
        },
        drops=frozenset(
            {
                ("subscript", "field:subscript"),
                ("raise_statement", "field:cause"),
            }
        ),
        operators=frozenset({("assignment", "="), ("augmented_assignment", "field:operator")}),
        keywords=frozenset({"raise", "try", "except", "finally"}),
        called=frozenset(),
        endings=(b"Error", b"Exception"),
    ),
    "lua": Rules(
        language=tree_sitter_lua.language,
        begins={("assignment_statement", "variable_list"): TARGET, ("variable_declaration", "variable_list"): TARGET},
        passes={TARGET: frozenset({"variable_list", "dot_index_expression", "bracket_index_expression"})},
        drops=frozenset({("bracket_index_expression", "field:field")}),
        operators=frozenset({("assignment_statement", "=")}),
        keywords=frozenset(),
        called=frozenset({b"error", b"pcall", b"xpcall", b"assert"}),
        endings=(),
    ),
}


class Open(NamedTuple):
    """A node around the walk's position."""

    type: str
    state: int
    named: tuple[str, ...]
    """Types of the first `LEVELS` named nodes from this one outwards, without the root."""
    role: str | None
    """The role of names below it."""
    concepts: tuple[str, ...]


class Grammar:
    """One language's parser, with the states met so far.

    Attributes:
        states: kind and name of each property, by state.
    """

    def __init__(self, language: str):
        """Make the parser of `python` or `lua`."""
        self.language, self.rules = language, LANGUAGES[language]
        self.states: list[list[tuple[str, str]]] = []
        self._parser = Parser(Language(self.rules.language()))
        self._numbers: dict[tuple, int] = {}

    def states_at(self, text: str, characters: Integer[np.ndarray, " character"]) -> Int[np.ndarray, " character"]:
        """The state at each of some characters, -1 after the first `MAX_CHARACTERS` and outside the tree."""
        source = text[:MAX_CHARACTERS].encode()
        starts, states = self._walk(source)
        first_bytes = _first_bytes(text[:MAX_CHARACTERS])
        inside = characters < len(first_bytes)
        places = np.searchsorted(starts, first_bytes[characters[inside]], side="right") - 1
        states_there = np.full(len(characters), -1)
        states_there[inside] = np.where(places >= 0, states[places], -1)
        return states_there

    def _walk(self, source: bytes) -> tuple[Int[np.ndarray, " change"], Int[np.ndarray, " change"]]:
        """The bytes at which the innermost node changes, and the state from there on.

        The walk does not recurse, because trees are deep.
        """
        tree = self._parser.parse(source)
        cursor = tree.walk()
        root = Open(type="", state=-1, named=(), role=None, concepts=())
        line = [root]
        starts, states = [0], [-1]
        while True:
            node = _node(cursor)
            line.append(self._enter(node, cursor.field_name, line[-1], source))
            starts.append(node.start_byte)
            states.append(line[-1].state)
            if cursor.goto_first_child():
                continue
            while True:
                line.pop()
                starts.append(_node(cursor).end_byte)
                states.append(line[-1].state)
                if cursor.goto_next_sibling():
                    break
                if not cursor.goto_parent():
                    return np.array(starts), np.array(states)

    def _enter(self, node: Node, field: str | None, around: Open, source: bytes) -> Open:
        """Describe a node by its type and by the node around it."""
        kind, is_root = node.type, around.type == ""
        role = None if is_root else self._role(kind, f"field:{field}", around)
        concepts = () if is_root else self._concepts(node, kind, field, role, around, source)
        state = self._state(kind, around, concepts)
        named = around.named if is_root or not node.is_named else (kind, *around.named)[:LEVELS]
        return Open(kind, state, named, role, concepts)

    def _role(self, kind: str, field: str, around: Open) -> str | None:
        """The role of the names in a node."""
        if (around.type, field) in self.rules.drops:
            return None
        for child in (field, kind, ""):
            if (around.type, child) in self.rules.begins:
                return self.rules.begins[around.type, child]
        passed = around.role is not None and around.type in self.rules.passes[around.role]
        return around.role if passed else None

    def _concepts(
        self, node: Node, kind: str, field: str | None, role: str | None, around: Open, source: bytes
    ) -> tuple[str, ...]:
        """The concepts of a leaf."""
        if (around.type, kind) in self.rules.operators or (around.type, f"field:{field}") in self.rules.operators:
            return ("assignment", "assignment =")
        if kind in self.rules.keywords:
            return ("exception",)
        if kind != "identifier":
            return ()
        text = source[node.start_byte : node.end_byte]
        is_called = around.type == "function_call" and text in self.rules.called
        concepts = ("assignment", "assignment target") if role == TARGET else ()
        is_exception = role == RAISED or is_called or (self.rules.endings and text.endswith(self.rules.endings))
        return (*concepts, "exception") if is_exception else concepts

    def _state(self, kind: str, around: Open, concepts: tuple[str, ...]) -> int:
        """The number of a state, a new one at its first occurrence."""
        key = (kind, around.type, around.named, concepts)
        if key not in self._numbers:
            self._numbers[key] = len(self.states)
            place = f"{kind} in {around.type}" if around.type else kind
            names = [place, *(f"inside {outer}" for outer in dict.fromkeys(around.named))]
            places = [("syntax", f"{self.language}: {name}") for name in names]
            self.states.append(places + [("concept", concept) for concept in concepts])
        return self._numbers[key]


def _node(cursor: TreeCursor) -> Node:
    """The cursor's node, which is never None within a tree."""
    node = cursor.node
    if node is None:
        raise RuntimeError("tree-sitter's cursor must be at a node, but it left its tree; update tree-sitter")
    return node


def _first_bytes(text: str) -> Int[np.ndarray, " character"]:
    """The first byte of each character in UTF-8."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    lengths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.cumsum(lengths) - lengths
