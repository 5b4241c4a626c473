#!/usr/bin/env python3
"""Writes random templates with the texts that Jinja2 makes of them, set up as transformers sets it up.

    pip install jinja2==3.1.6
    python3 tests/gold/templates/random_templates.py --seed 1 --count 2000 > tests/gold/templates/random.json

A template is an expression, or a few statements, drawn from a grammar of our own: values of each type, every operator, filter,
test and method of Jinja2 and Python that a chat template may use, with right and wrong arguments. `text` is null where Jinja2
gives an error. The test `random_templates_render_as_jinja2` compares; BIDPO_RANDOM_TEMPLATES=FILE lets it read another file."""

import argparse
import json
import random
import signal

from templates import CHATS, environment

CHAT = [
    {"role": "system", "content": "Be brief, please."},
    {"role": "user", "content": "Is  2 < 10?\n\nSay \"yes\" or 'no'."},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."},
    {"role": "user", "content": "na\u00efve \u00dcber-Test_Case 42", "name": "Ann"},
]

STRINGS = [
    "''", "'a'", "'abc'", "'Hello World'", "'a,b,,c'", "' x '", "'-42'", "'3.14'", "'0x1F'", "'tea\\n  time\\n'", "\"it's\"",
    "'\"q\"'", "'ABC'", "'camelCase word'", "'<b>&'", "'\u00e4\u00df\u0130'", "'%s|%s'", "'{} {}'", "'aXbXc'", "'a-b_c d'",
    "'one two  three four five'", "'\\t'", "'\u4f60\u597d'", "'1_000'", "'a\\\\b'",
]
INTS = ["0", "1", "2", "3", "-1", "-3", "7", "10", "255", "1_000"]
FLOATS = ["0.5", "1.0", "-2.5", "3.14159", "1e3", "1e20", "2.675", "0.1"]
OTHER = ["true", "false", "none", "True", "False", "None"]
SEPARATORS = ["','", "' '", "'X'", "'-'", "''", "none", "'b'"]
ATTRIBUTES = ["'role'", "'content'", "'name'", "'a'", "'b'", "0", "'0'", "'a.b'", "'missing'"]


class Grammar:
    """Draws expressions of a wanted type; one in eight has another."""

    def __init__(self, rng):
        self.rng = rng
        self.names = {}

    def pick(self, *options):
        return self.rng.choice(options)

    def of(self, kind, depth):
        if depth > 0 and self.rng.random() < 0.08:
            kind = self.pick("str", "int", "float", "list", "dict", "bool", "any")
        return getattr(self, kind)(depth)

    def any(self, depth):
        return self.of(self.pick("str", "str", "int", "float", "list", "list", "dict", "bool", "tuple", "other"), depth)

    def other(self, depth):
        names = [n for names in self.names.values() for n in names]
        return self.pick(*OTHER, "undefined_name", "messages[0].missing", *names)

    def tuple(self, depth):
        n = self.pick(0, 1, 2, 3)
        items = [self.any(depth - 1) for _ in range(n)]
        return "()" if n == 0 else "(" + ", ".join(items) + ("," if n == 1 else "") + ")"

    def list(self, depth):
        if depth <= 0:
            return self.pick(
                "[]", "[1, 2, 3]", "['b', 'A', 'c']", "[3, 1, 2]", "[1, 'a', none]", "['a', 'b']", "[0.5, 2]", "messages",
                "[[1, 2], [3, 4]]", "[{'a': 1, 'b': 'x'}, {'a': 2, 'b': 'y'}, {'a': 1, 'b': 'z'}]", "range(4)", "[true, false]",
                "['a', 'B', 'a', 'b']", "range(2, 9, 3)", "('x', 'y')", *self.names.get("list", []),
            )
        r = self.rng.random()
        e = lambda kind: self.of(kind, depth - 1)
        if r < 0.2:
            return "[" + ", ".join(self.any(depth - 1) for _ in range(self.pick(1, 2, 3))) + "]"
        if r < 0.4:
            return "(" + self.pick(
                f"{e('list')} | list", f"{e('list')} | sort{self.sort_args()}", f"{e('list')} | unique{self.pick('', '(true)', '(case_sensitive=true)', self.attribute())} | list",
                f"{e('list')} | reverse | list", f"{e('list')} | batch({self.pick(1, 2, 3, 5)}{self.pick('', ', 0')}) | list",
                f"{e('list')} | slice({self.small()}{self.pick('', ', 0')}) | list", f"{e('dict')} | dictsort{self.pick('', '(true)', '(by=' + chr(39) + 'value' + chr(39) + ')', '(reverse=true)')}",
                f"{e('dict')} | items | list", f"{e('list')} | map({self.mapping()}) | list",
                f"{e('list')} | {self.pick('select', 'reject')}({self.test_name()}) | list", f"{e('list')} | {self.pick('select', 'reject')} | list",
                f"messages | {self.pick('selectattr', 'rejectattr')}({self.pick(*ATTRIBUTES[:3])}{self.pick('', ', ' + self.test_name())}) | list",
                f"{e('list')} | groupby({self.pick(*ATTRIBUTES)}) | map('first') | list", f"{e('str')} | list",
                f"messages | groupby('role') | map(attribute={self.pick('0', chr(39) + 'grouper' + chr(39))}) | list",
            ) + ")"
        if r < 0.6:
            return self.pick(
                f"{e('str')}.split({self.split_args()})", f"{e('str')}.rsplit({self.split_args()})", f"{e('str')}.splitlines({self.pick('', 'true', 'keepends=true')})",
                f"{e('str')}.partition({self.pick(*SEPARATORS)})", f"{e('str')}.rpartition({self.pick(*SEPARATORS)})", f"{e('dict')}.items() | list",
                f"{e('dict')}.keys() | list", f"{e('dict')}.values() | list",
            )
        if r < 0.8:
            return "(" + self.pick(f"{e('list')} + {e('list')}", f"{e('list')} * {self.small()}", f"{e('list')}{self.slice()}", f"{e('list')} if {e('bool')} else {e('list')}", f"{e('list')} or {e('list')}") + ")"
        return self.list(0)

    def dict(self, depth):
        if depth <= 0:
            return self.pick(
                "{}", "{'a': 1, 'b': 2}", "{'z': 1, 'a': 'x'}", "{1: 'one', 2: 'two'}", "messages[3]", "messages[0]", "{'a': {'b': 1}}", "{'k': none, 'l': [1, 2]}",
                "dict(a=1, b='x')", "{'B': 2, 'a': 1}", "{none: 1, true: 2}", "{1.5: 'x'}", *self.names.get("dict", []),
            )
        key = self.pick("'a'", "'b'", "1", self.of("str", 0))
        return self.pick("{" + f"{key}: {self.any(depth - 1)}, 'z': {self.any(depth - 1)}" + "}", "dict(" + f"{self.dict(0)}, c={self.any(depth - 1)})", self.dict(0))

    def str(self, depth):
        if depth <= 0:
            return self.pick(*STRINGS, "messages[1].content", "messages[-1]['content']", "bos_token", "messages[2].role", *self.names.get("str", []))
        e = lambda kind: self.of(kind, depth - 1)
        r = self.rng.random()
        if r < 0.3:
            return f"{e('str')}.{self.method(depth)}"
        if r < 0.62:
            return "(" + self.string_filter(depth) + ")"
        if r < 0.88:
            return "(" + self.pick(
                f"{e('str')} ~ {self.any(depth - 1)}", f"{e('str')} + {e('str')}", f"{e('str')} * {self.small()}", f"{e('str')}{self.slice()}", f"{e('str')}[{self.small()}]",
                f"{self.percent()} % {self.any(depth - 1)}", f"{self.percent()} % ({self.any(depth - 1)}, {self.any(depth - 1)})", f"{e('str')} if {e('bool')} else {e('str')}",
                f"{e('str')} if {e('bool')}", f"{e('str')} or {e('str')}", f"{e('str')} and {e('str')}", f"{e('dict')}['a']", f"{e('dict')}.get('a', {e('str')})", f"{e('list')}[{self.small()}]",
                f"{e('str')} ~ {self.any(depth - 1)} ~ {self.any(depth - 1)}",
            ) + ")"
        return self.str(0)

    def method(self, depth):
        e = lambda kind: self.of(kind, depth - 1)
        sep = self.pick(*SEPARATORS)
        fill = self.pick("", ", '*'", ", 'ab'")
        return self.pick(
            "upper()", "lower()", "title()", "capitalize()", "swapcase()", "casefold()", "strip()", "lstrip()", "rstrip()", f"strip({sep})", f"lstrip({sep})", "rstrip('.\\n')",
            f"replace('a', {e('str')})", "replace('a', 'b', 1)", "replace('', '-')", "replace('a', 'b', -1)", "replace('a', 'b', count=1)", f"removeprefix({e('str')})", f"removesuffix({e('str')})",
            f"ljust({self.small()}{fill})", f"rjust(9{fill})", f"center(9{fill})", "zfill(6)", "expandtabs(4)", "expandtabs()", f"join({e('list')})", f"format({self.any(depth - 1)}, {self.any(depth - 1)})",
            "format(a=1, b='x')", f"find({e('str')})", f"rfind('a', {self.small()})", f"count({e('str')})", "index('a')", f"startswith({e('str')})", "startswith(('a', ' '))", f"endswith({e('str')})",
            "endswith(('c', '.'), 1)", f"startswith('b', {self.small()}, {self.small()})", "isdigit()", "isalpha()", "isalnum()", "isupper()", "islower()", "isspace()", "istitle()", "isascii()", "isnumeric()",
            "isidentifier()", "isdecimal()", "isprintable()", "missing()",
        )

    def string_filter(self, depth):
        e = lambda kind: self.of(kind, depth - 1)
        a = self.any(depth - 1)
        s = e("str")
        return self.pick(
            f"{s} | upper", f"{a} | lower", f"{s} | title", f"{s} | capitalize", f"{a} | trim", f"{s} | trim({self.pick(*SEPARATORS)})", f"{a} | string", f"{a} | tojson{self.json_args()}", f"{a} | tojson{self.json_args()}",
            f"{s} | replace('a', {e('str')})", f"{s} | replace('a', 'x', 1)", f"{s} | indent{self.pick('', '(2)', '(2, true)', '(width=3, blank=true)', '(' + chr(39) + '> ' + chr(39) + ', true)')}",
            f"{s} | center({self.small()})", f"{s} | truncate({self.pick('5', '9, true', '7, false, ' + chr(39) + '~' + chr(39), '6, true, ' + chr(39) + chr(39) + ', 0', 'length=8, leeway=0')})",
            f"{a} | escape", f"{s} | urlencode", f"{e('dict')} | urlencode", f"{s} | striptags", f"{e('list')} | join{self.pick('', '(' + chr(39) + ', ' + chr(39) + ')', '(d=' + chr(39) + '/' + chr(39) + ')', '(' + chr(39) + '+' + chr(39) + ', attribute=' + self.pick(*ATTRIBUTES) + ')')}",
            f"{self.percent()} | format({self.any(depth - 1)}, {self.any(depth - 1)})", f"{a} | default({e('str')})", f"{a} | default({e('str')}, true)", f"{a} | d('x')", f"{e('list')} | first", f"{e('list')} | last", f"{s} | reverse", f"{s} | wordcount",
            "1234567 | filesizeformat", f"{a} | pprint", f"(messages + {e('list')}) | pprint", f"({e('list')} * 9) | pprint", f"({s} * 20) | pprint", f"{{'text': {s} * 9, 'list': ({a}, {e('list')} * 5)}} | pprint", f"{e('dict')} | xmlattr", f"{s} | e", f"{s} | safe", f"{s} | forceescape", f"{a} | length", f"{a} | count", f"{s} | first", f"{s} | last",
            f"{e('list')} | sum{self.pick('', '(start=1)', '(attribute=' + self.pick(*ATTRIBUTES) + ')')}", f"{e('list')} | min", f"{e('list')} | max{self.attribute()}", f"{e('list')} | random | length", f"{e('dict')} | attr('a')", f"{s} | attr('a')",
        )

    def int(self, depth):
        if depth <= 0:
            return self.pick(*INTS, "messages | length", *self.names.get("int", []))
        e = lambda kind: self.of(kind, depth - 1)
        return "(" + self.pick(
            f"{e('int')} {self.pick('+', '-', '*', '//', '%', '**')} {self.pick('2', '3', '-2', '0', e('int'))}", f"{self.any(depth - 1)} | length", f"{self.any(depth - 1)} | int{self.int_args()}",
            f"{e('float')} | int", f"{e('int')} | abs", f"{e('str')}.find({e('str')})", f"{e('list')} | sum", f"-{e('int')}", f"+{e('int')}", f"{e('bool')} + 1", f"{e('list')}.index({self.any(depth - 1)})", f"{e('list')}.count(1)",
        ) + ")"

    def float(self, depth):
        if depth <= 0:
            return self.pick(*FLOATS)
        e = lambda kind: self.of(kind, depth - 1)
        number = lambda: e(self.pick("int", "float"))
        return "(" + self.pick(
            f"{number()} {self.pick('+', '-', '*', '/', '//', '%', '**')} {self.pick('2', '0.5', '-3', number())}", f"{number()} | round{self.pick('', '(1)', '(2)', '(-1)', '(1, ' + chr(39) + 'ceil' + chr(39) + ')', '(0, ' + chr(39) + 'floor' + chr(39) + ')', '(method=' + chr(39) + 'ceil' + chr(39) + ')')}",
            f"{self.any(depth - 1)} | float{self.pick('', '(1.5)', '(default=2.5)')}", f"{number()} | abs", f"-{number()}", f"{number()} / {number()}",
        ) + ")"

    def bool(self, depth):
        if depth <= 0:
            return self.pick("true", "false", "none", "add_generation_prompt", "(loop is defined)", "messages", "1 == 1.0", "'a' in 'abc'")
        e = lambda kind: self.of(kind, depth - 1)
        a = lambda: self.any(depth - 1)
        kind = self.pick("str", "int", "float", "list", "any")
        return "(" + self.pick(
            f"{e(kind)} {self.pick('==', '!=')} {e(kind)}", f"{e(kind)} {self.pick('<', '<=', '>', '>=')} {e(kind)}", f"{a()} {self.pick('==', '<')} {a()}", f"{a()} {self.pick('in', 'not in')} {e('list')}",
            f"{e('str')} in {e('str')}", f"{a()} in {e('dict')}", f"not {a()}", f"{e('bool')} and {e('bool')}", f"{e('bool')} or {a()}", f"{a()} is {self.test()}", f"{a()} is not {self.test()}",
            f"1 < {e('int')} < 5", f"{e('int')} == {e('int')} == 1", f"{a()} is {self.test()} and {e('bool')}", f"not {a()} is {self.test()}",
        ) + ")"

    def test(self):
        return self.pick(
            "defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "true", "false", "mapping", "sequence", "iterable", "callable", "odd", "even", "divisibleby(2)", "divisibleby 3",
            "lower", "upper", "equalto(1)", "eq 'a'", "ne(2)", "lt(3)", "gt 1", "ge(0)", "le(2)", "in([1, 'a', 2])", "in 'abc'", "sameas(none)", "sameas true", "escaped", "filter", "test", "greaterthan(1)", "lessthan(5)",
        )

    def test_name(self):
        return self.pick("'string'", "'number'", "'none'", "'defined'", "'odd'", "'even'", "'divisibleby', 2", "'equalto', 'user'", "'eq', 1", "'in', [1, 'a', 'user']", "'gt', 1", "'lt', 2", "'ne', 'user'", "'mapping'", "'sequence'", "'true'", "'lower'", "'nosuchtest'")

    def mapping(self):
        return self.pick(
            "'upper'", "'length'", "'string'", "'int'", "'tojson'", "'first'", "'last'", "'trim'", "'replace', 'a', 'b'", "'default', 'x'", "'abs'", "'round', 1", "'list'", "'join', '-'", "'float'", "'title'",
            *[f"attribute={a}" for a in ATTRIBUTES], "attribute='name', default='-'", "'nosuchfilter'",
        )

    def attribute(self):
        return f"(attribute={self.pick(*ATTRIBUTES)})"

    def sort_args(self):
        return self.pick("", "", "(true)", "(reverse=true)", "(case_sensitive=true)", f"(attribute={self.pick(*ATTRIBUTES)})", "(attribute='a,b')", "(false, true)")

    def split_args(self):
        return self.pick("", *SEPARATORS, "' ', 1", "none, 1", "'X', 0", "',', -1", "maxsplit=1", "sep=',', maxsplit=1", "',', maxsplit=1", "sep=none")

    def int_args(self):
        return self.pick("", "(5)", "(default=7)", "(0, 16)", "(base=16)", "(0, 2)", "(base=8)", "(default=-1, base=36)")

    def json_args(self):
        return self.pick("", "", "(indent=2)", "(indent=1)", "(sort_keys=true)", "(ensure_ascii=true)", "(separators=(',', ':'))", "(indent='--')", "(indent=0)", "(true)", "(false, 2)", "(indent=none)", "(indent=2, separators=(', ', '='))")

    def percent(self):
        return "'" + self.pick("%s", "%d", "%r", "%5s|", "%-6s|", "%05d", "%.2f", "%x", "%s-%s", "%d/%s", "%e", "%g", "%c", "%%|%s", "%(a)s", "%+d", "% d", "%.3s", "%i", "%o", "%#x", "%5.1f", "%s%%", "%a", "%G", "%-08.3f|") + "'"

    def small(self):
        return self.pick("0", "1", "2", "3", "-1", "5", "-2", "10")

    def slice(self):
        part = lambda: self.pick("", "", "0", "1", "2", "-1", "-2", "5", "none")
        # Jinja2 works out slices of constants otherwise than those of variables.
        return "[" + part() + ":" + part() + self.pick("", "", ":" + self.pick("2", "-1", "1", "-2", "0", "")) + "]"

    # Statements.

    def expression(self, depth):
        return self.any(self.rng.randint(1, depth))

    def shown(self, depth=2):
        dash = lambda: self.pick("", "", "", "-", "")
        return "{{" + dash() + " " + self.expression(depth) + " " + dash() + "}}"

    def text(self):
        return self.pick("a", " b ", "\n", "  \n", "x\n  ", "", "\n\n", "\ty", "<c>", "{", "}} ", "# ", "%}")

    def tag(self, inside):
        return "{%" + self.pick("", "", "-", "-", "+") + " " + inside + " " + self.pick("", "", "-", "+" if self.rng.random() < 0.3 else "") + "%}"

    def body(self, depth):
        return "".join(self.pick(self.text, self.shown, lambda: self.statement(depth - 1) if depth > 0 else self.shown())() for _ in range(self.pick(1, 2, 3)))

    def statement(self, depth=2):
        return getattr(self, self.pick(
            "s_if", "s_for", "s_for", "s_set", "s_set_block", "s_filter", "s_macro", "s_macro", "s_call", "s_namespace", "s_with", "s_raw", "s_comment", "s_recursive", "s_loop", "s_generation", "s_cycler", "s_scope", "s_tuple", "s_break",
        ))(depth)

    def s_if(self, depth):
        middle = self.pick("", "", self.tag("elif " + self.expression(1)) + self.body(0)) + self.pick("", self.tag("else") + self.body(0))
        return self.tag("if " + self.expression(2)) + self.body(depth) + middle + self.tag("endif")

    def s_for(self, depth):
        old = dict(self.names)
        target, inner = self.pick(("x", "x"), ("x", "x"), ("a, b", "a"), ("(a, b)", "b"))
        source = self.of("list", 1)
        if "," in target:
            source = self.pick("[(1, 2), (3, 4)]", self.of("dict", 0) + ".items()", self.of("dict", 0) + " | dictsort", "['ab', 'cd']", self.of("dict", 0) + " | items", "messages | groupby('role')")
        self.names = {**old, "any": [inner], "int": old.get("int", []) + ["loop.index", "loop.index0", "loop.revindex", "loop.length", "loop.depth"], "str": old.get("str", []) + [inner]}
        condition = self.pick("", "", "", " if " + self.of("bool", 1))
        body = self.body(depth)
        self.names = old
        return self.tag(f"for {target} in {source}{condition}") + body + self.pick("", "", self.tag("else") + self.body(0)) + self.tag("endfor")

    def s_loop(self, depth):
        field = self.pick("loop.first", "loop.last", "loop.index", "loop.revindex0", "loop.previtem", "loop.nextitem", "loop.changed(x)", "loop.changed(x % 2)", "loop.cycle('a', 'b')", "loop.cycle(1, 2, 3)", "loop.depth", "loop.depth0", "loop.length", "loop.previtem is defined", "loop.nextitem | default('-')", "loop.missing", "loop.cycle()", "loop.changed(x, 1)", "loop['index']", "loop.previtem is undefined and loop.first")
        return self.tag("for x in " + self.of("list", 1)) + "{{ " + field + " }}" + self.pick(",", " ", "\n") + self.tag("endfor") + self.pick("", "{{ x }}", "{{ loop }}")

    def s_set(self, depth):
        name = self.pick("p", "q")
        kind = self.pick("str", "int", "list", "dict")
        value = self.of(kind, 2)
        self.names.setdefault(kind, [])
        self.names[kind] = self.names[kind] + [name]
        return self.tag(f"set {name} = {value}") + "{{ " + name + " }}"

    def s_tuple(self, depth):
        return self.pick(self.tag(f"set p, q = {self.any(1)}, {self.any(1)}") + "{{ p }}|{{ q }}", self.tag(f"set p = {self.any(1)}, {self.any(1)}") + "{{ p }}", "{{ " + f"{self.any(1)}, {self.any(1)}" + " }}", self.tag(f"set (p, q) = {self.of('list', 1)}") + "{{ p }}{{ q }}")

    def s_set_block(self, depth):
        return self.tag("set p" + self.pick("", " | upper", " | trim", " | trim | length", " | replace('a', 'b')")) + self.body(0) + self.tag("endset") + "[{{ p }}]{{ p is string }}"

    def s_filter(self, depth):
        return self.tag("filter " + self.pick("upper", "trim", "indent(2)", "replace('a', 'o')", "upper | trim", "tojson", "title", "indent(width=3, first=true)")) + self.body(0) + self.tag("endfilter")

    def s_macro(self, depth):
        parameters = self.pick("", "x", "x, y", "x, y=1", "x=1, y=x", "x, y=none", "x='d'", "x, y=[1, 2]", "x, y=x ~ '!'", "y='a', x=y")
        shown = self.pick("{{ x }}", "{{ x }}|{{ y }}", "{{ varargs }}", "{{ kwargs }}", "{{ x }}{{ varargs }}{{ kwargs }}", "{{ varargs | length }}", "{{ kwargs.z }}", "{{ caller is defined }}", "{{ x is defined }}{{ y is defined }}", "{{ kwargs | tojson }}")
        argument = lambda: self.any(1)
        call = self.pick("f()", f"f({argument()})", f"f({argument()}, {argument()})", f"f({argument()}, y={argument()})", f"f(x={argument()})", f"f({argument()}, {argument()}, {argument()})", f"f({argument()}, z={argument()})", f"f(*[1, 2])", "f(**{'x': 1})", "f(*[1], **{'y': 2})", f"f(y={argument()})", f"f({argument()}, x=2)")
        after = self.pick("", "", "{{ f.name }}", "{{ f.arguments }}", "{{ f.defaults }}", "{{ f is callable }}", "{{ f.catch_kwargs }}{{ f.catch_varargs }}{{ f.caller }}", "{{ f(1) | length }}", "{{ (f(1) ~ f(2)) | upper }}")
        return self.tag(f"macro f({parameters})") + shown + self.pick("", self.text()) + self.tag("endmacro") + "{{ " + call + " }}" + after

    def s_call(self, depth):
        use = self.pick("{{ caller() }}", "{{ caller(1) }}", "{{ caller(1, 2) }}", "{{ caller(x) }}", "{{ caller(b=1) }}", "{{ caller }}" if self.rng.random() < 0.1 else "-", "{{ caller() | upper }}{{ caller() }}")
        declared = self.pick("", "", "(a)", "(a, b=2)", "(a, b)", "(b='z')")
        return self.tag("macro g(x=5)") + "<" + use + ">" + self.tag("endmacro") + self.tag(f"call{declared} g({self.pick('', '7', 'x=8', self.any(1))})") + self.pick("{{ a }}", "{{ b }}", "in", "{{ a }}{{ b }}", self.text()) + self.tag("endcall")

    def s_namespace(self, depth):
        start = self.pick("namespace(x=1)", "namespace()", "namespace({'x': 2})", "namespace({'x': 2}, y=3)", "namespace(x=[])", "namespace(x='')")
        step = self.pick("ns.x + 1", "ns.x ~ 'a'", "[1]", "ns.x + [i]", "ns.y", "loop.index", "i", "ns.x if i else 0", "'v'")
        return self.tag(f"set ns = {start}") + self.tag("for i in " + self.of("list", 0)) + self.tag(f"set ns.x = {step}") + self.tag("endfor") + "{{ ns.x }}" + self.pick("", "{{ ns.y }}", "{{ ns['x'] }}", "{{ ns.x is defined }}", "{{ ns is mapping }}", "{{ ns.missing is undefined }}")

    def s_scope(self, depth):
        return self.tag("set p = 0") + self.tag("for i in " + self.of("list", 0)) + self.tag(f"set p = {self.any(1)}") + "{{ p }}" + self.tag("endfor") + "{{ p }}" + self.tag(self.pick("if true", "if p == 0")) + self.tag("set p = 5") + self.tag("endif") + "{{ p }}"

    def s_with(self, depth):
        return self.tag("with " + self.pick(f"p = {self.any(1)}", f"p = {self.any(1)}, q = {self.any(1)}", "p = 1, q = p")) + "{{ p }}{{ q }}" + self.tag("endwith") + "{{ p is defined }}"

    def s_raw(self, depth):
        return self.pick("{% raw %}", "{%- raw %}", "{% raw -%}") + self.pick("{{ x }}", "{% if %}", " {# c #} ", "\n{{\n", "a") + self.tag("endraw")

    def s_comment(self, depth):
        return self.text() + "{#" + self.pick("", "-") + " c {{ x }} {% if %} " + self.pick("", "-") + "#}" + self.text()

    def s_recursive(self, depth):
        tree = self.pick("[{'n': 1, 'c': [{'n': 2, 'c': []}]}, {'n': 3, 'c': []}]", "[{'n': 'a', 'c': [{'n': 'b', 'c': [{'n': 'c', 'c': []}]}]}]")
        field = self.pick("{{ i.n }}", "{{ loop.depth }}{{ i.n }}", "{{ loop.depth0 }}:{{ loop.index }}", "{{ i.n }}{{ loop.last }}")
        return self.tag(f"for i in {tree} recursive") + field + self.pick("({{ loop(i.c) }})", "{% if i.c %}[{{ loop(i.c) }}]{% endif %}", "{{ loop(i.c) | upper }}") + self.tag("endfor")

    def s_generation(self, depth):
        return self.text() + self.tag("generation") + self.body(0) + self.tag("endgeneration") + self.text()

    def s_cycler(self, depth):
        return self.pick(self.tag("set c = cycler('a', 'b', 1)") + "{{ c.next() }}{{ c.current }}", self.tag("set c = cycler('a', 'b', 1)") + "{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.reset() }}{{ c.next() }}", self.tag("set j = joiner(', ')") + self.tag("for i in " + self.of("list", 0)) + "{{ j() }}{{ i }}" + self.tag("endfor"))

    def s_break(self, depth):
        return self.tag("for x in " + self.of("list", 1)) + self.pick("", "{{ x }}") + self.tag("if " + self.pick("x == 2", "loop.index == 2", "x is string", "not x", "loop.last")) + self.tag(self.pick("break", "continue")) + self.tag("endif") + self.pick("{{ x }};", "{{ loop.index }}") + self.tag("endfor")


class TooLong(Exception):
    pass


def stop(*_):
    raise TooLong


def rendered(env, source):
    """The text, or None for an error; False where no text is to be compared."""
    signal.setitimer(signal.ITIMER_REAL, 2)
    try:
        text = env.from_string(source).render(messages=CHAT, bos_token="<s>", eos_token="</s>", tools=None, documents=None, add_generation_prompt=True)
    except TooLong:
        return False
    except Exception:
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    # Addresses and names of Python's own objects are no text of a chat.
    own = (" at 0x", "<generator", "<class", "<built-in", "<bound", "<Macro", "dict_keys", "dict_values", "dict_items", "<LoopContext", "<function", "<Cycler", "<Joiner", "Namespace", "<jinja2", "Markup(", "MARKUP(", "j)")
    if len(text) > 2000 or any(o in text for o in own):
        return False
    return text


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--count", type=int, default=2000)
    arguments.add_argument("--depth", type=int, default=3)
    a = arguments.parse_args()
    signal.signal(signal.SIGALRM, stop)
    env = environment()
    rng = random.Random(a.seed)
    random.seed(0)
    out, seen = [], set()
    errors = 0
    while len(out) < a.count:
        grammar = Grammar(rng)
        source = grammar.shown(a.depth) if rng.random() < 0.6 else "".join(grammar.statement() for _ in range(rng.choice([1, 1, 2])))
        if source in seen or len(source) > 500 or "random" in source:
            continue
        seen.add(source)
        text = rendered(env, source)
        if text is False or (text is None and errors > len(out) / 5):
            continue
        errors += text is None
        out.append({"template": source, "text": text})
    lines = ",\n".join(json.dumps(o, ensure_ascii=False) for o in out)
    chat = json.dumps(CHAT, ensure_ascii=False)
    print(f'{{"chat": {chat},\n"templates": [\n{lines}\n]}}')


if __name__ == "__main__":
    main()
