"""Lua 5.4 programs that parse and mostly run: classes, lists, closures, text, algorithms, errors and small tests.

A program is written section by section. Sections declare their definitions (`Program.functions`, `Program.calls`), so
that later sections use only existing names and pass arguments of the right type.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from random import Random
from typing import NamedTuple, TypeVar

from saelineage.corpora.samples.lua_algorithms import ALGORITHMS
from saelineage.corpora.samples.lua_words import Domain, domains

Option = TypeVar("Option")
MIN_BYTES, MAX_BYTES = 300, 4000
RESERVED = {"end", "return", "table", "string", "repeat", "until", "for", "in", "do", "not", "type", "load", "select"}
PRECEDENCE = {"or": 1, "and": 2, "<": 3, ">": 3, "<=": 3, ">=": 3, "==": 3, "~=": 3, "..": 8, "+": 9, "-": 9,
              "*": 10, "/": 10, "//": 10, "%": 10, "unary": 11, "^": 12, "atom": 20}  # fmt: skip


class Expression(NamedTuple):
    """Source text and the precedence of its outermost operator."""

    text: str
    precedence: int

    def inside(self, precedence: int) -> str:
        """Return the text, in parentheses if it binds no tighter than an operator of this precedence."""
        return self.text if self.precedence > precedence else f"({self.text})"


class Function(NamedTuple):
    """A function that later code may call."""

    name: str
    parameters: list[str]
    """The type of each parameter: "number", "string" or "list" (of numbers)."""
    result: str


class Scope:
    """The readable variables by type, and those that may be assigned to."""

    def __init__(self, parent: "Scope | None" = None):
        self.names: dict[str, list[str]] = {
            kind: list(parent.names[kind]) if parent else [] for kind in ("number", "string", "list")
        }
        self.changeable: set[str] = set(parent.changeable) if parent else set()
        self.in_loop: bool = parent.in_loop if parent else False

    def declare(self, name: str, kind: str, changeable: bool = True) -> None:
        self.names[kind].append(name)
        if changeable:
            self.changeable.add(name)

    def targets(self, kind: str) -> list[str]:
        return [name for name in self.names[kind] if name in self.changeable]

    def has(self, name: str) -> bool:
        return any(name in names for names in self.names.values())


class Program:
    """The text written so far, its style and its definitions."""

    def __init__(self, rng: Random):
        self.random = rng.random
        self.lines: list[str] = []
        self.depth = 0
        self.domain: Domain = self.pick(_domains())
        self.indent: str = self.pick(["  ", "  ", "    ", "\t"])
        self.quote: str = self.pick(['"', '"', "'"])
        self.camel: bool = self.chance(0.4)
        self.comments: str = self.pick(["none", "plain", "plain", "doc", "block"])
        self.assigned_functions: bool = self.chance(0.15)
        self.module: str = self.pick(["M", "M", self.upper(self.domain.records), f"{self.domain.record}lib"])
        self.functions: list[Function] = []
        self.calls: list[list[str]] = []
        """For each section, statements that use it; written at the end."""
        self.taken: dict[str, None] = {}
        """Names at the top level, in the order of their definition, which a set would lose."""

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

    def name(self, *words: str) -> str:
        """Join words into an identifier in the style of this program."""
        parts = " ".join(words).split()
        name = parts[0] + "".join([part.capitalize() for part in parts[1:]]) if self.camel else "_".join(parts)
        return name + "_" if name in RESERVED else name

    def upper(self, words: str) -> str:
        """Return the name of a class or module."""
        return "".join([part.capitalize() for part in words.split()])

    def new_name(self, *words: str) -> str:
        """Return a name that is still free at the top level."""
        name = base = self.name(*words)
        suffix = 2
        while name in self.taken:
            name, suffix = f"{base}{suffix}", suffix + 1
        self.taken[name] = None
        return name

    def text(self, value: str) -> str:
        """Return a string literal."""
        return self.quote + value + self.quote

    def value(self) -> str:
        return self.text(self.pick(self.domain.values))

    def emit(self, *lines: str) -> None:
        """Write lines at the current depth."""
        self.lines += [self.indent * self.depth + line if line else "" for line in lines]

    @contextmanager
    def block(self, head: str, end: str = "end") -> Iterator[None]:
        """Write the opening line, indent the lines of the `with` block, and write the closing line."""
        self.emit(head)
        self.depth += 1
        yield
        self.depth -= 1
        self.emit(end)

    def function(self, name: str, parameters: str) -> AbstractContextManager[None]:
        """Open a local function, in the form that this program prefers."""
        if self.assigned_functions:
            return self.block(f"local {name} = function({parameters})")
        return self.block(f"local function {name}({parameters})")

    def comment(self, summary: str, parameters: dict[str, str] | None = None, result: str = "") -> None:
        """Write a comment in the style of this program."""
        if self.comments == "plain" and self.chance(0.7):
            self.emit(f"-- {summary}")
        elif self.comments == "block" and self.chance(0.5):
            self.emit("--[[", f"{self.indent}{summary}", "]]")
        elif self.comments == "doc":
            self.emit(f"--- {summary}")
            self.emit(*[f"-- @param {name} {kind}" for name, kind in (parameters or {}).items()])
            if result:
                self.emit(f"-- @return {result}")


@cache
def _domains() -> list[Domain]:
    return domains()


def document(rng: Random) -> str:
    """Write one program of 300 to 4000 bytes."""
    while True:
        program = Program(rng)
        _write_program(program)
        text = "\n".join(program.lines) + "\n"
        if MIN_BYTES <= len(text) <= MAX_BYTES:
            return text


def _write_program(program: Program) -> None:
    is_module = program.chance(0.4)
    _header(program, is_module)
    for section in program.sample(SECTIONS, program.number(1, 5)):
        section(program)
        program.emit("")
    if is_module:
        for name in program.taken:
            program.emit(f"{program.module}.{name} = {name}")
        program.emit("", f"return {program.module}")
    else:
        _try_out(program)


def _header(program: Program, is_module: bool) -> None:
    domain = program.domain
    title = program.pick([f"{domain.records}.lua: {domain.purpose}.", f"A script that {domain.purpose}.",
                          f"{program.upper(domain.records)}: {domain.purpose}."])  # fmt: skip
    if program.comments == "block":
        program.emit("--[[", f"{program.indent}{title}", "]]", "")
    elif program.comments != "none":
        program.emit(f"{'---' if program.comments == 'doc' else '--'} {title}", "")
    if program.chance(0.3):
        names = program.sample(["insert", "concat", "unpack", "sort"], program.number(1, 3))
        program.emit(f"local {', '.join(names)} = {', '.join([f'table.{name}' for name in names])}")
    if is_module:
        program.emit(f"local {program.module} = {{}}", "")


def _try_out(program: Program) -> None:
    """End a script with statements that use its definitions."""
    if program.comments != "none":
        program.emit(program.pick(["-- Try it out.", "-- Example", "-- Quick checks", "-- main"]))
    style = program.pick(["plain", "plain", "do", "main"])
    heads = {"do": "do", "main": "local function main()"}
    statements = [line for call in program.calls for line in call]
    statements += [f"print({_call(program, function, Scope())})" for function in program.functions[-3:]]
    if style == "plain":
        program.emit(*statements)
    else:
        with program.block(heads[style]):
            program.emit(*statements)
    if style == "main":
        program.emit("", "main()")


# Sections: each writes one piece of a program.


def _class(program: Program) -> None:
    """A class with a constructor, methods, sometimes metamethods or a subclass, and an object of it."""
    domain = program.domain
    cls = program.upper(domain.record)
    if cls in program.taken:
        return _computation(program)
    program.taken[cls] = None
    text, number, number2 = program.pick(domain.texts), *program.sample(domain.numbers, 2)
    text, number, number2 = program.name(text), program.name(number), program.name(number2)
    program.emit(f"local {cls} = {{}}", f"{cls}.__index = {cls}", "")
    program.comment(f"Create a new {domain.record}.", {text: "string", number: "number"}, domain.record)
    with program.block(f"function {cls}.new({text}, {number})"):
        _constructor(program, cls, text, number, number2)
    methods = [_getter, _changer, _describer, _comparer, _checker, _resetter]
    calls: list[str] = []
    for method in program.sample(methods, program.number(1, 4)):
        program.emit("")
        calls += method(program, cls, text, number, number2)
    if program.chance(0.25):
        _subclass(program, cls, text, number)
    value = program.name(program.pick(["first", "sample", "current", domain.record]))
    made = f"local {value} = {cls}.new({program.value()}, {program.number(1, 90)})"
    program.calls.append([made] + [call.replace("OBJ", value) for call in calls])
    if program.chance(0.4):
        program.calls[-1].append(f"print({value}.{text}, {value}.{number})")


def _constructor(program: Program, cls: str, text: str, number: str, number2: str) -> None:
    default = program.number(0, 20)
    start = program.pick([str(program.number(0, 9)), f"({number} or {default}) * {program.number(2, 9)}"])
    if program.chance(0.5):
        with program.block("return setmetatable({", f"}}, {cls})"):
            program.emit(f"{text} = {text},", f"{number} = {number} or {default},", f"{number2} = {start},")
        return
    this = program.pick(["self", "self", "object", "instance"])
    program.emit(f"local {this} = setmetatable({{}}, {cls})", f"{this}.{text} = {text}")
    program.emit(f"{this}.{number} = {number} or {default}", f"{this}.{number2} = {start}", f"return {this}")


def _getter(program: Program, cls: str, text: str, number: str, number2: str) -> list[str]:
    method = program.name(program.pick(["get", "total", "effective", "scaled"]), number)
    operator, factor = program.pick(["+", "-", "*", "/", "%"]), program.number(2, 12)
    with program.block(f"function {cls}:{method}()"):
        program.emit(f"return self.{number} {operator} {program.pick([str(factor), f'(self.{number2} + 1)'])}")
    return [f"print(OBJ:{method}())"]


def _changer(program: Program, cls: str, text: str, number: str, number2: str) -> list[str]:
    method = program.name(program.pick([*program.domain.verbs, "add", "raise", "increase"]))
    amount = program.pick(["amount", "delta", "by", "n"])
    program.comment(f"Change the {number} of this {program.domain.record}.", {amount: "number"})
    with program.block(f"function {cls}:{method}({amount})"):
        if program.chance(0.6):
            with program.block(f"if {amount} {program.pick(['<', '<='])} 0 then"):
                problem = program.pick([f"{amount} must be positive", f"invalid {amount}", f"bad {number}"])
                program.emit(program.pick([f"error({program.text(problem)})", f"return nil, {program.text(problem)}"]))
        operator = program.pick(["+", "-", "+"])
        if program.chance(0.4):
            program.emit(f"self.{number2} = self.{number2} + 1")
        program.emit(f"self.{number} = self.{number} {operator} {amount}", "return self")
    calls = [f"OBJ:{method}({program.number(1, 30)})"]
    if program.chance(0.3):
        calls.append(f"print(pcall(OBJ.{method}, OBJ, {-program.number(1, 9)}))")
    return calls


def _describer(program: Program, cls: str, text: str, number: str, number2: str) -> list[str]:
    form = program.pick(["%s (%s)", "%s: %s", "<%s %s>", "%s has " + number + " %s", f"{cls}[%s, %s]"])
    with program.block(f"function {cls}:__tostring()" if program.chance(0.5) else f"{cls}.__tostring = function(self)"):
        if program.chance(0.6):
            program.emit(f"return string.format({program.text(form)}, self.{text}, self.{number})")
        else:
            program.emit(f"return self.{text} .. {program.text(': ')} .. self.{program.pick([number, number2])}")
    return ["print(tostring(OBJ))"]


def _comparer(program: Program, cls: str, text: str, number: str, number2: str) -> list[str]:
    event, operator = program.pick([("__lt", "<"), ("__eq", "=="), ("__le", "<=")])
    a, b = program.pick([("a", "b"), ("left", "right"), ("one", "other")])
    with program.block(f"{cls}.{event} = function({a}, {b})"):
        program.emit(f"return {a}.{number} {operator} {b}.{number}")
    return [f"print(OBJ {operator} {cls}.new({program.value()}, {program.number(1, 90)}))"]


def _checker(program: Program, cls: str, text: str, number: str, number2: str) -> list[str]:
    method = program.name("is", program.pick(["valid", "full", "low", "ready", "active", "empty"]))
    limit = program.number(1, 60)
    with program.block(f"function {cls}:{method}()"):
        join = program.pick(["and", "or"])
        right = program.pick([f"self.{text} ~= nil", f"self.{number2} > {program.number(0, 5)}", f"#self.{text} > 0"])
        program.emit(f"return self.{number} {program.pick(['<', '>', '>=', '<='])} {limit} {join} {right}")
    return program.pick([[f"print(OBJ:{method}())"], [f"if not OBJ:{method}() then print({program.value()}) end"]])


def _resetter(program: Program, cls: str, text: str, number: str, number2: str) -> list[str]:
    method = program.name(program.pick(["reset", "clear", "restart"]))
    with program.block(f"function {cls}:{method}()"):
        program.emit(f"self.{number}, self.{number2} = {program.number(0, 5)}, 0")
    return [f"OBJ:{method}()"]


def _subclass(program: Program, cls: str, text: str, number: str) -> None:
    sub = program.pick(["Special", "Rare", "Timed", "Shared", "Large", "Local"]) + cls
    method = program.name(program.pick(program.domain.verbs), "all")
    program.emit("", f"local {sub} = setmetatable({{}}, {{ __index = {cls} }})", f"{sub}.__index = {sub}", "")
    with program.block(f"function {sub}.new({text}, {number}, extra)"):
        program.emit(f"local self = setmetatable({cls}.new({text}, {number}), {sub})")
        program.emit(f"self.extra = extra or {program.number(1, 9)}", "return self")
    program.emit("")
    with program.block(f"function {sub}:{method}()"):
        program.emit(f"return self.{number} {program.pick(['+', '*', '-'])} self.extra")
    new = f"{sub}.new({program.value()}, {program.number(1, 40)}, {program.number(2, 9)})"
    program.calls.append([f"print({new}:{method}())"])


def _records(program: Program) -> None:
    """A literal list of records, and functions that search, filter, sum, group or sort it."""
    domain = program.domain
    text = program.name(program.pick(domain.texts))
    number = program.name(program.pick(domain.numbers))
    rows = program.new_name(program.pick([domain.records, f"all {domain.records}", f"sample {domain.records}"]))
    with program.block(f"local {rows} = {{", "}"):
        for value in program.sample(domain.values, program.number(3, 5)):
            program.emit(f"{{ {text} = {program.text(value)}, {number} = {program.number(1, 99)} }},")
    for operation in program.sample([_filter_rows, _sum_rows, _find_row, _sort_rows, _group_rows, _map_rows], 2):
        program.emit("")
        program.calls.append(operation(program, rows, text, number))


def _loop_rows(program: Program, over: str) -> tuple[str, str]:
    """Return the head of a loop over a list, and the expression for its current element."""
    row = program.pick([program.name(program.domain.record), "entry", "row", "v"])
    if program.chance(0.25):
        return f"for i = 1, #{over} do", f"{over}[i]"
    return f"for _, {row} in ipairs({over}) do", row


def _filter_rows(program: Program, rows: str, text: str, number: str) -> list[str]:
    function = program.new_name(program.pick(["filter", "select", "keep", "pick"]), "by", number)
    limit, result = program.pick(["limit", "minimum", "threshold", "cutof"]), program.pick(["result", "kept", "out"])
    program.comment(f"Keep the {program.domain.records} whose {number} passes the {limit}.", {limit: "number"}, "table")
    with program.function(function, f"list, {limit}"):
        program.emit(f"local {result} = {{}}")
        head, row = _loop_rows(program, "list")
        with program.block(head), program.block(f"if {row}.{number} {program.pick(['>', '>=', '<'])} {limit} then"):
            program.emit(program.pick([f"table.insert({result}, {row})", f"{result}[#{result} + 1] = {row}"]))
        program.emit(f"return {result}")
    return [f"print(#{function}({rows}, {program.number(5, 80)}))"]


def _sum_rows(program: Program, rows: str, text: str, number: str) -> list[str]:
    function = program.new_name(program.pick(["total", "sum", "add up", "average"]), number)
    total = program.pick(["total", "sum", "acc"])
    with program.function(function, "list"):
        program.emit(f"local {total} = 0")
        head, row = _loop_rows(program, "list")
        with program.block(head):
            program.emit(f"{total} = {total} + {row}.{number}")
        program.emit(f"return {total} / #list" if function.startswith("average") else f"return {total}")
    return [f"print({program.text(number + ':')}, {function}({rows}))"]


def _find_row(program: Program, rows: str, text: str, number: str) -> list[str]:
    function = program.new_name(program.pick(["find", "lookup", "get"]), program.domain.record)
    with program.function(function, f"list, {text}"):
        head, row = _loop_rows(program, "list")
        with program.block(head), program.block(f"if {row}.{text} == {text} then"):
            program.emit(f"return {row}")
        program.emit(f"return nil, {program.text('no such ' + program.domain.record)}")
    found = program.pick(["found", "match", "hit"])
    return [f"local {found} = {function}({rows}, {program.value()})",
            f"print({found} and {found}.{number} or {program.text('none')})"]  # fmt: skip


def _sort_rows(program: Program, rows: str, text: str, number: str) -> list[str]:
    key = program.pick([text, number])
    with program.block(f"table.sort({rows}, function(a, b)", "end)"):
        if key == number:
            with program.block(f"if a.{number} ~= b.{number} then"):
                program.emit(f"return a.{number} {program.pick('<>')} b.{number}")
        program.emit(f"return a.{text} < b.{text}")
    return [f"for i, row in ipairs({rows}) do print(i, row.{key}) end"]


def _group_rows(program: Program, rows: str, text: str, number: str) -> list[str]:
    function = program.new_name("group", "by", text)
    with program.function(function, "list"):
        program.emit("local groups = {}")
        head, row = _loop_rows(program, "list")
        with program.block(head):
            program.emit(f"local key = {row}.{text}:sub(1, {program.number(1, 2)})")
            program.emit("groups[key] = groups[key] or {}", f"table.insert(groups[key], {row}.{number})")
        program.emit("return groups")
    return [f"for key, list in pairs({function}({rows})) do print(key, #list) end"]


def _map_rows(program: Program, rows: str, text: str, number: str) -> list[str]:
    function = program.new_name("map", program.domain.records)
    with program.function(function, "list, fn"):
        program.emit("local out = {}")
        with program.block("for i, value in ipairs(list) do"):
            program.emit("out[i] = fn(value)")
        program.emit("return out")
    body = program.pick([f"row.{text}:upper()", f"row.{text} .. {program.text('=')} .. row.{number}", f"#row.{text}"])
    separator = program.pick([", ", "; ", "\\n", "\\t", " | "])
    mapped = f"{function}({rows}, function(row) return {body} end)"
    return [f"print(table.concat({mapped}, {program.text(separator)}))"]


def _closure(program: Program) -> None:
    """A function that returns a function: a counter, a memo or an iterator."""
    word, step = program.name(program.pick(program.domain.numbers)), program.number(1, 9)
    kind = program.pick(["counter", "memoize", "iterator", "limiter"])
    function = program.new_name({"memoize": "memoize"}.get(kind, f"make {word} {kind}"))
    argument = {"counter": "start", "memoize": "fn", "iterator": "list", "limiter": "limit"}[kind]
    program.comment({"counter": f"Count {word} up in steps of {step}.", "memoize": "Remember results.",
                     "iterator": "Walk over a list backwards.", "limiter": "Refuse later calls."}[kind])  # fmt: skip
    with program.function(function, argument):
        if kind == "counter":
            program.emit(f"local {word} = start or 0")
            with program.block("return function()"):
                program.emit(f"{word} = {word} + {step}", f"return {word}")
        elif kind == "memoize":
            program.emit("local cache = {}")
            with program.block("return function(x)"):
                program.emit("local known = cache[x]")
                with program.block("if known == nil then"):
                    program.emit("known = fn(x)", "cache[x] = known")
                program.emit("return known")
        elif kind == "iterator":
            program.emit("local i = #list + 1")
            with program.block("return function()"):
                program.emit("i = i - 1")
                with program.block("if i > 0 then"):
                    program.emit("return i, list[i]")
        else:
            program.emit("local calls = 0")
            with program.block("return function(...)"):
                program.emit("calls = calls + 1")
                with program.block("if calls > limit then"):
                    program.emit(f"return nil, {program.text('too many calls')}")
                program.emit(f"return select({program.text('#')}, ...), ...")
    next_ = program.pick(["next_value", "step", "tick", "advance"])
    items = ", ".join([program.value() for _ in range(3)])
    program.calls.append({
        "counter": [f"local {next_} = {function}({program.number(0, 50)})", f"print({next_}(), {next_}())"],
        "memoize": [f"local square = {function}(function(x) return x * x end)", f"print(square({step}))"],
        "iterator": [f"for i, value in {function}({{ {items} }}) do print(i, value) end"],
        "limiter": [f"local {next_} = {function}({step})", f"print({next_}({items}))"],
    }[kind])  # fmt: skip


def _errors(program: Program) -> None:
    """Validation that raises an error, and a caller that catches it."""
    domain = program.domain
    number, text = program.name(program.pick(domain.numbers)), program.name(program.pick(domain.texts))
    function = program.new_name(program.pick(["check", "validate", "parse", "require"]), domain.record)
    low, high = program.number(0, 9), program.number(10, 500)
    program.comment(f"Raise an error unless the {domain.record} makes sense.", {domain.record: "table"}, "boolean")
    record = program.name(domain.record)
    with program.function(function, record):
        with program.block(f"if type({record}) ~= {program.text('table')} then"):
            program.emit(f"error({program.text('expected a table, got ')} .. type({record}), 2)")
        if program.chance(0.6):
            program.emit(f"assert({record}.{text}, {program.text(f'missing {text}')})")
        problem = program.pick([f"{number} out of range", f"bad {number}: %s", f"{number} must be at most {high}"])
        message = program.text(problem)
        raised = f"{message}:format({record}.{number})" if "%s" in problem else message
        raised = f"({message}):format({record}.{number})" if "%s" in problem else raised
        with program.block(f"if {record}.{number} < {low} or {record}.{number} > {high} then"):
            program.emit(f"error({program.pick([raised, f'{{ code = {program.number(1, 9)}, message = {raised} }}'])})")
        program.emit("return true")
    ok, err = program.pick([("ok", "err"), ("success", "message"), ("ok", "reason")])
    argument = f"{{ {text} = {program.value()}, {number} = {program.pick([low - 1, high + 1, low + 1])} }}"
    tried = [f"local {ok}, {err} = pcall({function}, {argument})", f"print({ok}, type({err}))"]
    program.calls.append(tried)
    if program.chance(0.4):
        program.calls[-1].append(f"print(select(2, pcall({function}, {program.number(1, 99)})))")


def _config(program: Program) -> None:
    """A table of settings with nested tables."""
    config = program.new_name(program.pick(["config", "settings", "options", "defaults"]))
    with program.block(f"local {config} = {{", "}"):
        for name in program.sample(program.domain.numbers, program.number(2, 4)):
            prefix = program.pick(["max", "min", "default", "initial"])
            program.emit(f"{program.name(prefix, name)} = {program.pick([program.number(1, 999), 0.5, 1.25, 0.1])},")
        for name in program.sample(program.domain.texts, 2):
            program.emit(f"{program.name(name)} = {program.value()},")
        program.emit(f"verbose = {program.pick(['true', 'false'])},")
        if program.chance(0.5):
            values = program.sample(program.domain.values, 3)
            program.emit(f"{program.name(program.domain.records)} = {{ {', '.join(map(program.text, values))} }},")
        if program.chance(0.4):
            program.emit(f"[{program.text('retry-' + program.pick(program.domain.verbs))}] = {program.number(1, 5)},")
        if program.chance(0.5):
            with program.block(f"{program.pick(['limits', 'window', 'logging', 'cache'])} = {{", "},"):
                program.emit(f"size = {program.pick([64, 128, 256, 1024, '0xff', '1e3'])},", "enabled = true,")
    if program.chance(0.4):
        program.emit("", f"local help = [[{program.upper(program.domain.records)}: {program.domain.purpose}.",
                     f"Use --{program.pick(program.domain.verbs)} or --help.", "]]")  # fmt: skip
        program.calls.append(["print(help)"])
    program.calls.append([f"for key, value in pairs({config}) do print(key, value) end"])


def _varargs(program: Program) -> None:
    """A function with any number of arguments."""
    kind = program.pick(["sum", "largest", "join", "log"])
    function = program.new_name(kind, program.pick(["of", "all", "values"]))
    with program.function(function, "..."):
        if kind == "sum":
            program.emit("local total = 0")
            with program.block("for _, value in ipairs({ ... }) do"):
                program.emit("total = total + value")
            program.emit(f"return total, select({program.text('#')}, ...)")
        elif kind == "largest":
            program.emit("local best = ...")
            with program.block(f"for i = 2, select({program.text('#')}, ...) do"):
                program.emit("local value = select(i, ...)", "if value > best then best = value end")
            program.emit("return best")
        elif kind == "join":
            program.emit(f"return table.concat({{ ... }}, {program.text(program.pick(['-', ', ', '/']))})")
        else:
            program.emit("local parts = {}")
            with program.block(f"for i = 1, select({program.text('#')}, ...) do"):
                program.emit("parts[i] = tostring((select(i, ...)))")
            label = program.text(f"[{program.domain.record}]")
            program.emit(f"print({label}, table.concat(parts, {program.text(' ')}))")
    arguments = ", ".join([str(program.number(1, 99)) for _ in range(program.number(2, 6))])
    program.calls.append([f"{function}({arguments})" if kind == "log" else f"print({function}({arguments}))"])


def _algorithm(program: Program) -> None:
    """A classic algorithm, with names and layout in the style of this program."""
    title, names, source, call = program.pick(ALGORITHMS)
    words = {key: program.name(program.pick(options)) for key, options in names.items()}
    words["fn"] = program.new_name(program.pick(names["fn"]))
    source, call = [re.sub(r"\$(\w+)", lambda match: words[match[1]], text) for text in (source, call)]
    program.comment(title)
    for line in source.strip().split("\n"):
        body = line.lstrip(" ")
        program.emit(program.indent * ((len(line) - len(body)) // 2) + body.replace("'", program.quote))
    call = call.replace("'", program.quote)
    while "#N" in call:
        call = call.replace("#N", str(program.number(2, 40)), 1)
    while "#S" in call:
        call = call.replace("#S", program.value(), 1)
    program.calls.append([f"print({call})"])


def _computation(program: Program) -> None:
    """A function with a random body over the variables in scope."""
    domain, scope = program.domain, Scope()
    result = program.pick(["number", "number", "string", "list"])
    noun = program.pick({"number": domain.numbers, "string": domain.texts, "list": domain.records.split()}[result])
    verb = program.pick([*domain.verbs, "compute", "update", "build", "estimate"])
    function = program.new_name(verb, noun)
    parameters = _parameters(program, scope)
    about = f"{verb.capitalize()} the {noun}, given {' and '.join(parameters)}."
    program.comment(about, parameters, result if result != "list" else "table")
    with program.function(function, ", ".join(parameters)):
        _statements(program, scope, program.number(2, 4), nesting=0)
        targets = scope.targets(result)
        value = program.pick(targets[-2:]) if targets and program.chance(0.6) else ""
        program.emit(f"return {value or _expression(program, scope, result, 2).text}")
    program.functions.append(Function(function, list(parameters.values()), result))


def _parameters(program: Program, scope: Scope) -> dict[str, str]:
    numbers = {program.name(word): "number" for word in program.sample(program.domain.numbers, program.number(1, 2))}
    texts = {program.name(word): "string" for word in program.sample(program.domain.texts, program.number(0, 1))}
    lists = {program.pick(["values", "list", "entries", "samples"]): "list"} if program.chance(0.5) else {}
    parameters = numbers | texts | lists
    for name, kind in parameters.items():
        scope.declare(name, kind, changeable=kind == "number")
    return parameters


def _statements(program: Program, scope: Scope, n: int, nesting: int) -> None:
    """Write n statements, with at most two levels of compound ones."""
    for _ in range(n):
        if program.comments != "none" and program.chance(0.07):
            _remark(program, scope)
        compound = nesting < 2 and program.chance(0.45)
        statement = program.pick(COMPOUND if compound else SIMPLE)
        statement(program, scope, nesting)


def _remark(program: Program, scope: Scope) -> None:
    """A short comment about an existing variable."""
    number, noun = program.pick(scope.names["number"]), program.domain.record
    program.emit("-- " + program.pick([f"Adjust the {number}.", f"{number} may be zero here", f"next {noun}",
                                       f"TODO: check {number} for each {noun}", f"keep {number} in range",
                                       f"nothing to do without {number}", f"the usual case for {noun}"]))  # fmt: skip


def _local(program: Program, scope: Scope, nesting: int) -> None:
    kind = program.pick(["number", "number", "string", "list"])
    words = {"number": program.domain.numbers, "string": program.domain.texts, "list": ["result", "out", "found"]}[kind]
    prefix = program.pick(["new", "last", "best", "next", "base", "extra"])
    name = program.name(prefix, program.pick(words))
    if scope.has(name):
        return _assign(program, scope, nesting)
    attribute = " <const>" if kind == "number" and program.chance(0.04) else ""
    program.emit(f"local {name}{attribute} = {_expression(program, scope, kind, 2).text}")
    scope.declare(name, kind, changeable=not attribute)


def _assign(program: Program, scope: Scope, nesting: int) -> None:
    targets = scope.targets("number")
    if not targets:
        return
    name = program.pick(targets)
    if len(targets) > 1 and program.chance(0.12):
        a, b = program.sample(targets, 2)
        program.emit(f"{a}, {b} = {b}, {_expression(program, scope, 'number', 1).text}")
    else:
        operator = program.pick(["+", "-", "+", "*"])
        right = _expression(program, scope, "number", 1).inside(PRECEDENCE[operator])
        program.emit(f"{name} = {name} {operator} {right}")


def _append(program: Program, scope: Scope, nesting: int) -> None:
    """Extend a string or a list, but never a list that an enclosing loop walks over."""
    texts, lists = scope.targets("string"), scope.targets("list")
    if lists and program.chance(0.6):
        name, value = program.pick(lists), _expression(program, scope, "number", 2).text
        program.emit(program.pick([f"table.insert({name}, {value})", f"{name}[#{name} + 1] = {value}"]))
    elif texts:
        # Only a literal or a number is added, so that a loop cannot double the string in each iteration.
        number = _expression(program, scope, "number", 0).text
        name = program.pick(texts)
        program.emit(f"{name} = {name} .. {program.pick([program.value(), f'tostring({number})'])}")
    else:
        _assign(program, scope, nesting)


def _if(program: Program, scope: Scope, nesting: int) -> None:
    program.emit(f"if {_condition(program, scope).text} then")
    _branch(program, scope, nesting)
    if program.chance(0.25):
        program.emit(f"elseif {_condition(program, scope).text} then")
        _branch(program, scope, nesting)
    if program.chance(0.4):
        program.emit("else")
        _branch(program, scope, nesting)
    program.emit("end")


def _branch(program: Program, scope: Scope, nesting: int) -> None:
    program.depth += 1
    before = len(program.lines)
    _statements(program, Scope(scope), program.number(1, 2), nesting + 1)
    if len(program.lines) == before:
        program.emit(f"print({program.value()})")
    program.depth -= 1


def _for(program: Program, scope: Scope, nesting: int) -> None:
    inner = Scope(scope)
    counter = program.pick(["i", "j", "k", "n", "step"])
    if scope.has(counter):
        counter = f"{counter}{nesting + 2}"
    lists = scope.names["list"]
    if lists and program.chance(0.6):
        over = program.pick(lists)
        inner.changeable.discard(over)
        value = program.pick(["value", "v", "entry", "x"])
        index = program.pick(["_", counter])
        head = f"for {index}, {value} in ipairs({over}) do"
        if index == counter:
            inner.declare(counter, "number", changeable=False)
        inner.declare(value, "number", changeable=False)
    else:
        stop = program.pick([str(program.number(2, 10)), f"math.min({program.pick(scope.names['number'])}, 8)"])
        head = program.pick([f"for {counter} = 1, {stop} do", f"for {counter} = {program.number(5, 10)}, 1, -1 do"])
        inner.declare(counter, "number", changeable=False)
    program.emit(head)
    _branch(program, inner, nesting)
    program.emit("end")


def _while(program: Program, scope: Scope, nesting: int) -> None:
    counter = program.name(program.pick(["count", "remaining", "rounds", "tries"]))
    if scope.has(counter):
        return _if(program, scope, nesting)
    inner = Scope(scope)
    inner.declare(counter, "number", changeable=False)
    start = program.number(2, 9)
    program.emit(f"local {counter} = {start}")
    scope.declare(counter, "number", changeable=False)
    repeat = program.chance(0.4)
    program.emit("repeat" if repeat else f"while {counter} > 0 do")
    _branch(program, inner, nesting)
    program.emit(f"{program.indent}{counter} = {counter} - {program.number(1, 2)}")
    program.emit(f"until {counter} <= 0" if repeat else "end")


def _skip_loop(program: Program, scope: Scope, nesting: int) -> None:
    """A loop that skips some iterations with goto, because Lua has no continue."""
    if program.chance(0.7):
        return _for(program, scope, nesting)
    label = program.pick(["continue", "skip", "next_round"])
    with program.block(f"for index = 1, {program.number(3, 9)} do"):
        with program.block(f"if index % {program.number(2, 4)} == {program.number(0, 1)} then"):
            program.emit(f"goto {label}")
        inner = Scope(scope)
        inner.declare("index", "number", changeable=False)
        _assign(program, inner, nesting)
        program.emit(f"::{label}::")


SIMPLE = (_local, _local, _assign, _append)
COMPOUND = (_if, _if, _for, _for, _while, _skip_loop)


# Expressions, by type. `depth` bounds how far they nest.


def _expression(program: Program, scope: Scope, kind: str, depth: int) -> Expression:
    return {"number": _number, "string": _string, "list": _list}[kind](program, scope, depth)


def _number(program: Program, scope: Scope, depth: int) -> Expression:
    roll = program.random()
    if depth == 0 or roll < 0.3:
        return _number_atom(program, scope)
    if roll < 0.75:
        operator = program.pick(["+", "-", "*", "+", "-", "*", "/", "//", "%"])
        precedence = PRECEDENCE[operator]
        left = _number(program, scope, depth - 1).inside(precedence - 1)
        if operator in ("/", "//", "%"):
            return Expression(f"{left} {operator} {program.number(2, 12)}", precedence)
        return Expression(f"{left} {operator} {_number(program, scope, depth - 1).inside(precedence)}", precedence)
    a = _number(program, scope, depth - 1).text
    if roll < 0.9:
        b = _number_atom(program, scope).text
        call = program.pick([f"math.max({a}, {b})", f"math.min({a}, {b})", f"math.abs({a})", f"math.floor({a})"])
        return Expression(call, PRECEDENCE["atom"])
    callable_ = [function for function in program.functions if function.result == "number"]
    if callable_:
        return Expression(_call(program, program.pick(callable_), scope), PRECEDENCE["atom"])
    return Expression(f"{_number_atom(program, scope).inside(PRECEDENCE['^'])} ^ 2", PRECEDENCE["^"])


def _number_atom(program: Program, scope: Scope) -> Expression:
    atoms = [str(program.number(0, 100)), *scope.names["number"], *scope.names["number"]]
    atoms += [f"#{name}" for name in scope.names["list"] + scope.names["string"]]
    if program.chance(0.1):
        atoms = [program.pick(["0.5", "1.5", "0.25", "1e3", "0x10", "2.75"])]
    text = program.pick(atoms)
    return Expression(text, PRECEDENCE["unary" if text[0] == "#" else "atom"])


def _string(program: Program, scope: Scope, depth: int) -> Expression:
    names = scope.names["string"]
    roll = program.random()
    if depth == 0 or roll < 0.25:
        atom = program.pick(names) if names and program.chance(0.6) else program.value()
        return Expression(atom, PRECEDENCE["atom"])
    if roll < 0.5:
        right = program.pick([_string(program, scope, 0).text, f"tostring({_number(program, scope, depth - 1).text})"])
        return Expression(f"{_string(program, scope, depth - 1).text} .. {right}", PRECEDENCE[".."])
    if roll < 0.75 and names:
        name = program.pick(names)
        gsub = f"gsub({program.text('%s+')}, {program.text('_')})"
        method = program.pick(["upper()", "lower()", "sub(1, 3)", "rep(2)", "reverse()", gsub])
        call = f"{name}:{method}"
        # gsub also returns a count, which parentheses drop.
        return Expression(f"({call})" if "gsub" in method else call, PRECEDENCE["atom"])
    form = program.text(program.pick(["%s", "%s!", "<%s>", "value: %s", "%s\\n", "\\t%s", "(%s)"]))
    return Expression(f"string.format({form}, {_number(program, scope, depth - 1).text})", PRECEDENCE["atom"])


def _list(program: Program, scope: Scope, depth: int) -> Expression:
    if scope.names["list"] and program.chance(0.4):
        # A copy, because a loop over a list that grows under a second name would never end.
        name = program.pick(scope.names["list"])
        return Expression(name if depth == 0 else f"{{ table.unpack({name}) }}", PRECEDENCE["atom"])
    elements = [_number(program, scope, max(depth - 1, 0)).text for _ in range(program.number(0, 4))]
    return Expression(f"{{ {', '.join(elements)} }}" if elements else "{}", PRECEDENCE["atom"])


def _condition(program: Program, scope: Scope, depth: int = 1) -> Expression:
    if depth and program.chance(0.25):
        operator = program.pick(["and", "or"])
        left = _condition(program, scope, 0).inside(PRECEDENCE[operator] - 1)
        return Expression(f"{left} {operator} {_condition(program, scope, 0).inside(PRECEDENCE[operator])}",
                          PRECEDENCE[operator])  # fmt: skip
    if scope.names["string"] and program.chance(0.2):
        name = program.pick(scope.names["string"])
        return Expression(f"{name} {program.pick(['==', '~='])} {program.value()}", PRECEDENCE["=="])
    operator = program.pick(["<", ">", "<=", ">=", "==", "~="])
    left = program.pick(scope.names["number"]) if scope.names["number"] else str(program.number(1, 9))
    right = _number(program, scope, 1).inside(PRECEDENCE[operator])
    comparison = f"{left} {operator} {right if right != left else program.number(1, 50)}"
    return Expression(f"not ({comparison})" if program.chance(0.06) else comparison, PRECEDENCE[operator])


def _call(program: Program, function: Function, scope: Scope) -> str:
    arguments = [_expression(program, scope, kind, 0).text for kind in function.parameters]
    call = f"{function.name}({', '.join(arguments)})"
    return f"#{call}" if function.result == "list" else call


SECTIONS: tuple[Callable[[Program], None], ...] = (
    _class, _class, _records, _records, _closure, _errors, _config, _varargs, _algorithm, _algorithm, _computation,
    _computation, _computation,
)  # fmt: skip
