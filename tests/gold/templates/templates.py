#!/usr/bin/env python3
"""Renders a corpus of chat templates with Jinja2, set up as transformers sets it up, and writes the results.

    pip install jinja2==3.1.6
    python3 tests/gold/templates/templates.py > tests/gold/templates/templates.json

The corpus is our own. Every construct that chat templates use occurs in it: each expression is applied to every message of
every chat, and the statements stand in templates of their own. The test `templates_render_as_jinja2` compares hashes of the texts, so that this file stays small."""

import datetime
import hashlib
import json
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

# SOURCE_DATE_EPOCH of the test.
NOW = datetime.datetime.fromtimestamp(1720200606, datetime.timezone.utc)


class Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks for training masks, no effect on the text."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def environment():
    """As transformers 4.5x: immutable sandbox, trimmed blocks, loop controls, its own tojson."""

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: NOW.strftime(f)
    return env


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


CHATS = [
    [],
    [user("Hi")],
    [user("  two  spaces\tand a tab \n")],
    [{"role": "system", "content": "Answer in one line."}, user("What is tea?")],
    [user("One"), assistant("Two."), user("Three?")],
    [{"role": "system", "content": "S"}, user("a"), assistant("b"), user("c"), assistant("d")],
    [user("Q"), assistant("<think>\nlet me see\n</think>\n\nThe answer."), user("And?")],
    [user("x=1, y=2; \"quoted\" 'single' <b>&amp;</b>"), assistant("{{ not a template }} {% if %}")],
    [user("Gr\u00fc\u00dfe, \u4f60\u597d, \U0001f375 and \u00a0"), assistant("na\u00efve \u0130stanbul")],
    [user("line one\nline two\r\nline three\n\nline five"), assistant("\n\n")],
    [user(""), assistant("after nothing")],
    [{"role": "tool", "content": "[1, 2, 3]"}, {"role": "developer", "content": "D"}, user("u")],
    [user("UPPER lower Title MiXeD 123 _id"), assistant("-42"), user("007"), assistant("3.50")],
    [user("a,b,,c"), assistant("key: value: more"), user("prefix-middle-suffix"), assistant("%d %s 100%")],
]

# Applied to each message `m` with content `c`; `loop` is the loop's.
EXPRESSIONS = r"""
c
c.strip()
c.lstrip()
c.rstrip()
c.strip('"? \n')
c.split()
c.split(',')
c.split(',', 1)
c.split('</think>')[-1].lstrip('\n')
c.rsplit(':', 1)
c.rsplit(None, 1)
c.rsplit('-')
c.splitlines()
c.partition(':')
c.rpartition('-')
c.upper()
c.lower()
c.title()
c.capitalize()
c.swapcase()
c.casefold()
c.replace('a', 'AA')
c.replace('a', '', 1)
c.replace('', '.')
c.startswith('prefix')
c.startswith(('a', 'x'))
c.endswith('suffix')
c.endswith(('?', '.'))
c.find('a')
c.find('a', 2)
c.rfind('a')
c.count('a')
c.removeprefix('prefix-')
c.removesuffix('-suffix')
c.ljust(12) ~ '|'
c.rjust(12, '*')
c.center(13)
c.center(12, '-')
c.zfill(6)
c.expandtabs(4)
c.isdigit()
c.isalpha()
c.isalnum()
c.isupper()
c.islower()
c.isspace()
c.istitle()
c.isascii()
c.isdecimal()
c.isidentifier()
'-'.join(c.split())
', '.join([c, m.role])
'{} and {}'.format(m.role, loop.index)
'{0}-{0}-{1}'.format(m.role, c)
'{name}!'.format(name=m.role)
'%s' % c
'%s: %s' % (m.role, c)
'%(role)s says' % m
'%d of %d' % (loop.index, loop.length)
'%05d|%-5d|%+d|% d' % (loop.index, loop.index, loop.index, loop.index)
'%.3f %8.2f %e %g' % (1.5, loop.index / 3, 12345.678, 0.0001)
'%x %X %o %#x' % (255, 255, 8, 255)
'%r' % c
'%5s|%-5s|%.2s' % (m.role, m.role, m.role)
'100%%' % ()
'%c%c' % ('a', 66)
[7 % 3, -7 % 3, 7 % -3, 7.5 % 2, -7.5 % 2]
c[0:3]
c[-3:]
c[::2]
c[::-1]
c[:-1]
c[1:-1:2]
c[5:2:-1]
messages[::-1] | length
messages[1:] | length
messages[-1].role
messages[:-1] | map(attribute='role') | join('/')
c | length
c | count
c | upper
c | lower
c | title
c | capitalize
c | trim
c | trim('"')
c | replace('a', '4')
c | replace('a', '4', 1)
c | default('none')
undefined_name | default('fallback')
undefined_name | default
'' | default('empty', true)
none | default('still none')
c | list | length
c | list
c | first
c | last
c | reverse
c | wordcount
c | center(20)
c | indent
c | indent(2)
c | indent(2, true)
c | indent(2, first=true)
c | indent(width=3, blank=true)
c | indent('> ')
c | string
c | tojson
m | tojson
messages | tojson
messages | tojson(indent=2)
m | tojson(indent=4)
m | tojson(separators=(',', ':'))
m | tojson(sort_keys=true)
c | tojson(ensure_ascii=true)
[] | tojson(indent=2)
{} | tojson
{'b': 1, 'a': [true, none, 1.0, 1e20]} | tojson
{'z': 1, 'a': 2, 'm': 3}
{'b': c, 'a': m.role} | items | list | length
{'b': 1, 'a': 2}.items() | map('first') | list
{'b': 1, 'a': 2}.keys() | list
{'b': 1, 'a': 2}.values() | list
{'b': 1, 'a': 2} | dictsort | map('first') | list
m.get('role')
m.get('missing')
m.get('missing', 'default')
m['role']
m['missing'] is defined
m.missing is defined
m.content is defined and m.content
m.keys() | list
'role' in m
'tool' in m.role
c in 'Hi there'
'a' not in c
m.role in ['user', 'assistant']
m.role == 'user'
m.role != 'user' and loop.first
not loop.last
loop.index
loop.index0
loop.revindex
loop.revindex0
loop.first
loop.last
loop.length
loop.cycle('odd', 'even')
loop.previtem.role if loop.previtem is defined else 'start'
loop.nextitem.role if loop.nextitem is defined else 'end'
true
false
none
True and False
None
1
1.0
1.5e10
1e16
1e-5
0.1 + 0.2
10 / 4
10 // 4
-7 // 2
2 ** 10
1 + 2 * 3 - 4
(1 + 2) * 3
'a' * 3
[1, 2] * 2
[1] + [2, 3]
'a' ~ 1 ~ none ~ true ~ 1.5
m.role ~ ': ' ~ c
'a' + 'b' + c
c + '\n'
"tab\tnew\nline \\ back 'single' \"double\""
'it''s'
[c, 1, none, true, 1.5]
[c, [m.role, {'k': c}]]
(1, 2)[0]
[1, 2, 3][-1]
[3, 1, 2] | sort
[3, 1, 2] | sort(reverse=true)
['b', 'A', 'c'] | sort
[3, 1, 2] | max
[3, 1, 2] | min
[3, 1, 2] | sum
[1, 1, 2] | unique | list
[1, 2, 3, 4] | batch(2) | list
[1, 2, 3, 4, 5] | select('odd') | list
[1, 2, 3, 4, 5] | reject('odd') | list
messages | selectattr('role', 'equalto', 'user') | list | length
messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list
messages | rejectattr('role', 'equalto', 'user') | map(attribute='role') | list
messages | selectattr('role', 'in', ['user', 'tool']) | list | length
messages | selectattr('missing') | list | length
messages | selectattr('content', 'defined') | list | length
messages | map(attribute='role') | unique | list
messages | map(attribute='content') | map('length') | sum
messages | map(attribute='content') | map('upper') | join(' ')
messages | map(attribute='role') | join(', ')
messages | groupby('role') | map('first') | list
messages | length
messages | first is defined
(messages | last).content | length
[c, m.role] | join('|')
[1, none, true, 'x'] | join('-')
messages | join(' + ', attribute='role')
3.7 | int
'42' | int
'4.2' | float
'x' | int
'x' | int(7)
3.14159 | round(2)
2.5 | round
-3 | abs
'%s-%s' | format(m.role, loop.index)
'%(a)s' | format(a=c)
c is string
c is defined
undefined_name is defined
undefined_name is undefined
undefined_name
undefined_name | length
none is none
none is not none
none is iterable
c is iterable
1 is iterable
messages is iterable
m is iterable
undefined_name is iterable
m is mapping
messages is mapping
messages is sequence
c is sequence
m is sequence
1 is sequence
1 is number
1.5 is number
true is number
true is boolean
1 is integer
1.0 is integer
1.0 is float
'a' is number
2 is even
3 is odd
4 is divisibleby 2
4 is divisibleby(3)
true is true
1 is true
false is false
'a' is eq 'a'
1 is lt 2
2 is ge(2)
1 is in [1, 2]
c is lower
c is upper
m is sameas m
none is sameas none
1 if loop.first else 2
'only' if loop.first
('a' if loop.first else 'b') ~ 'c'
1 < 2 < 3
1 < 3 < 2
1 == 1.0
true == 1
'a' < 'b'
none or 'x'
'' or [] or 'last'
(messages | length) and 1
(loop.index0) and c
m.items() | list
2.675 | round(2)
1234.5 | round(-2)
1.1 | round(0, 'ceil')
not ''
bos_token ~ eos_token
add_generation_prompt
tools is none
tools is not none
documents is defined and documents is not none
not tools
strftime_now('%Y-%m-%d')
strftime_now('%d %b %Y')
strftime_now('%A, %B %d %Y %H:%M:%S %p %j')
range(3) | list
range(1, 10, 3) | list
range(5, 0, -2) | list
dict(a=1, b=c)
namespace(a=1).a
c | e
'<a>' | escape
c | striptags
c | truncate(12)
c | truncate(9, true, '')
messages[loop.index0].content == c
messages[0]['role'] if messages else 'empty'
loop.index is divisibleby 2
(loop.index0 % 2 == 0) == (m.role == 'user')
m['content'] | trim | replace('\n', ' ') | upper
{'user': 'U', 'assistant': 'A'}[m.role]
{'user': 'U', 'assistant': 'A'}.get(m.role, '?')
'a' if m.role == 'user' else 'b' if m.role == 'assistant' else 'c'
[m.role] * 2 + ['end']
c.split('\n') | map('trim') | join('|')
c.split('\n') | select | list
m.items() | list | length
c.rindex('a') if 'a' in c else -1
c.format()
'{:>8}|{:<8}|{:^8}|{:*^8}'.format(m.role, m.role, m.role, m.role)
'{:05d} {:,} {:.2f} {:x}'.format(loop.index, 1234567, 2.5, 255)
'{0[role]} {1}'.format(m, loop.index)
'{{}} {}'.format(c)
'%s' | format(none)
'%s' % [1, 'a']
'%s' % {'a': 1}
c[loop.index0:]
messages | sum(attribute='n', start=0) if false else 'skip'
messages | map(attribute='content') | map('replace', 'a', 'b') | list
messages | sort(attribute='role') | map(attribute='content') | list
messages | sort(attribute='role', reverse=true) | map(attribute='role') | list
messages | sort(attribute='role,content') | map(attribute='role') | list
messages | max(attribute='content') | length if messages
messages | unique(attribute='role') | map(attribute='role') | list
messages | selectattr('role', 'in', ('user',)) | first is defined
messages | groupby('role') | list | length
messages | slice(2) | list | length
[1, 2, 3, 4, 5] | slice(3) | list
[1, 2, 3, 4, 5] | slice(3, 'x') | list
[1, 2, 3, 4, 5] | batch(3, 'x') | list
['a', 'B', 'C'] | sort(case_sensitive=true)
['a', 'A', 'b'] | unique | list
['b', 'a'] | min
[] | max
[] | first
[] | last
[] | sum
{'b': 1, 'a': 2} | dictsort(by='value')
{'b': 1, 'a': 2} | dictsort(false, 'value', true)
{'b': 1, 'A': 2} | dictsort(case_sensitive=true)
{'b': 1, 'a': 2} | items | list
[1, 2, 2].count(2)
[1, 2].index(2)
loop.index ~ '/' ~ loop.length
c | indent(4, true, true)
123456 | filesizeformat
1000000 | filesizeformat(true)
c | trim('. ')
c | trim(chars='?')
c | replace('\n', '\\n')
undefined_name | first
undefined_name | trim
loop.first is boolean
c | batch(4) | map('join') | join('|')
c.split(' ', maxsplit=1)
c.split(sep=',')
c.split(maxsplit=1)
c.rsplit(sep=' ', maxsplit=1)
c.splitlines(true)
c.splitlines(keepends=true)
c.replace('a', 'b', count=1) if false else c.replace('a', 'b')
c.startswith('H', 0, 1)
c.find('o', 1, 5)
c.index('zzz') if 'zzz' in c else 'no'
c.lower().split(' ') | map('capitalize') | join(' ')
[c, c] | unique | list | length
[[1, 2], [3, 4]] | map('last') | list
[[1, 2], [3, 4]] | map('sum') | list
[{'a': 1}, {'a': 2}] | map(attribute='a') | sum
[{'a': 1}, {'a': 2}] | sum(attribute='a')
messages | tojson(indent=2, ensure_ascii=true)
m | tojson | length
c | tojson | tojson
[1, [2, {'a': []}]] | tojson(indent=1)
[1, 2] | tojson(indent=0)
{'a': [], 'b': {}} | tojson(indent=2)
{'b': 1, 'a': {'d': 1, 'c': 2}} | tojson(sort_keys=true, indent=2)
[1, 2] | tojson(separators=(', ', ': '))
[1, 2] | tojson(none, 2)
(1, 2) | tojson
1.0 | tojson
1e100 | tojson
1e-7 | tojson
none | tojson
'<>&' | tojson
{1: 2} | tojson
{true: 1} | tojson
range(3) | list | tojson
strftime_now('%y %m %e %I %M %S %f %Z %z %U %W %w %c %x %X %%')
strftime_now('%G-W%V-%u %h %D %T %R %F %n%t|')
strftime_now('%-d %-m %-I %-H')
strftime_now('%B') | upper
strftime_now('')
'%s' % strftime_now('%Y')
c | regex_replace('a', 'b') if false else 'no'
m | dictsort | map('first') | list
m | items | map('join', '=') | list
m.items() | first
m.get('content', '') | trim
m == messages[loop.index0]
messages.index(m)
messages | first == m
messages | length - 1 == loop.index0
loop.index == messages | length
(messages[loop.index] if not loop.last else {}).role | default('end')
messages[loop.index:] | selectattr('role', 'equalto', 'user') | list | length
'</think>' in c and c.split('</think>')[0]
c.split('<think>')[-1].split('</think>')[0].strip('\n')
c | replace('<think>', '') | replace('</think>', '') | trim
'\n'.join(c.splitlines())
c.strip().replace('\r\n', '\n').split('\n')[0]
bos_token + c if loop.first else c
eos_token if loop.last and m.role == 'assistant'
loop.index % 2
loop.index is odd
loop.index0 is even
'a\u2028b'.splitlines()
'a\x0bb\x0cc\x1cd'.splitlines()
'a\u3000b'.split()
'%s' % 'é'
'abc' | first ~ 'abc' | last
'a,b;c'.replace(',', ';').split(';')
'abcabc'.rfind('bc', 0, 4)
'abcabc'.count('bc', 2)
'aaa'.replace('a', 'b', 2)
'aaa'.replace('', '-', 2)
''.split()
''.split(',')
''.splitlines()
' a  b '.split(' ')
'a b c'.split(none, 1)
'abc' | batch(2) | list
dict([('a', 1), ('b', c)])
dict([['a', 1]], b=2)
dict({'a': 1}, a=3, b=c)
dict(['ab', 'cd'])
dict() | length
c.translate({97: 'x', 101: none, 105: 66})
c.translate(c.maketrans('aeiou', 'AEIOU'))
c.translate(c.maketrans('aeiou', 'AEIOU', 'xyz'))
c.maketrans({'a': 'x', 98: none})
'{a} and {b}'.format_map({'a': c, 'b': 2})
c.encode('utf-8').decode()
'\u00e9"a\n'.encode()
c.encode() | length
c[:3].encode().hex()
'{!r:>12}|{!s}'.format(c[:4], c[:4])
'{a[0]} {a[1]!r} {b[k]} {b.k}'.format(a=[1, c], b={'k': 'v'})
'{0} {1} {0}'.format(1.0, [c])
'{:%} {:.1%} {:>9.2%} {:+.0%} {:09.1%}'.format(0.25, 0.5, 0.125, 1, 0.5)
'{:>{}} {:{w}.{p}f}'.format('a', 5, 3.14159, w=8, p=2)
'{} {}'.format(1)
'{} {0}'.format(1)
'{x}'.format(1)
'{'.format(1)
'{:>5}'.format([1])
c | wordwrap(12)
c | wordwrap(12, false)
c | wordwrap(12, break_on_hyphens=false)
c | wordwrap(7, wrapstring='|')
'well-known long-established fact-finding a-b-c x-1-y' | wordwrap(9)
'a--b---c text--here e-mail, and/or re-re-use' | wordwrap(5)
'  two  spaces and averyveryverylongword-with-hyphens' | wordwrap(10)
c | wordwrap(0)
['<' | e, c | e, c | safe]
{'a': '<' | e}
('<' | e) + '<' + c
'<' + ('>' | e)
c | e | e
c | e | forceescape
(c | e) is escaped
(c | e) == c
c | e | length
m.items is defined
m.get('nothing', m.nothing)
m.get('nothing') is none
m.get('nothing', none)
m.nothing | truncate(3)
m.items and 'method'
'yes' if {'values': 1}.values else 'no'
{'items': 2}['items']
{'get': 1}.get('get')
1e400
-1e400
"it's -42it's 0x1f".title()
c.title()
{'b': 1, 'a': [{'d': 1, 'c': 2}]} | pprint
{'a': 1, 'b': 2} | reverse | list
2 ** 100 - 1
1 < 2 < 3 < c | length
'a' in 'abc' in ['abc']
""".strip().split("\n")

TEMPLATES = [
    "{% filter length %}abc{% endfilter %}",
    "{% filter list %}{{ messages[0].content }}{% endfilter %}",
    "{% filter upper | trim %} {{ messages[0].content }} {% endfilter %}",
    "{% filter replace('a', 'b') %}{{ messages[0].content }}{% endfilter %}",
    "{% set x | length %}{{ messages[0].content }}{% endset %}{{ x + 1 }}",
    "{% for m in messages %}{% if m.items %}{{ m.items() | list | length }}{% endif %}{% set f = m.get %}{{ f('role') }}{% endfor %}",
    # ChatML and its relatives.
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}",
    "{%- if messages and messages[0]['role'] == 'system' -%}{%- set sys = messages[0]['content'] -%}{%- set rest = messages[1:] -%}{%- else -%}{%- set sys = '' -%}{%- set rest = messages -%}{%- endif -%}\n<sys>{{ sys }}</sys>\n{%- for m in rest %}\n<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>\n{%- endfor %}\n{% if add_generation_prompt %}<assistant>{% endif %}\n",
    # White space control.
    "A\n  {% if true %}\nB\n  {% endif %}\nC\n",
    "A\n  {%- if true -%}\n  B  \n  {%- endif -%}\n  C\n\n",
    "{%+ if true %}x{%+ endif %}\n  {%+ for m in messages +%}\n y\n{% endfor %}\n",
    "  {# comment #}\nx {#- c -#} y\n{# a\nb #}z",
    "{{- 'a' -}}  \n  {{ 'b' }}\n{{ 'c' }}\n",
    "line\r\n{% if true %}\r\nx\r\n{% endif %}\r\n",
    # Namespaces, loops, macros.
    "{% set ns = namespace(n=0, last='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.last = m.role %}{% endfor %}{{ ns.n }} {{ ns.last }}",
    "{% set x = 1 %}{% for m in messages %}{% set x = 2 %}{% endfor %}{{ x }}",
    "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }},{% endfor %}",
    "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.role }},{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}:{{ m.content }};{% else %}no user{% endfor %}",
    "{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}={{ v }};{% endfor %}",
    "{% for i, m in [(1, 'x'), (2, 'y')] %}{{ i }}{{ m }}{% endfor %}",
    "{% for m in messages %}{% for c in m.content.split() %}{{ loop.index }}{{ c }} {% endfor %}|{% endfor %}",
    "{% for m in messages | reverse %}{{ m.role }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% macro turn(role, text, end='!') %}<{{ role }}>{{ text }}{{ end }}{% endmacro %}{% for m in messages %}{{ turn(m.role, m.content) }}{{ turn('x', text='y', end='') }}{% endfor %}",
    "{% macro f(n) %}{% if n > 0 %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
    "{% macro wrap() %}[{{ caller() }}]{% endmacro %}{% call wrap() %}inner {{ messages | length }}{% endcall %}",
    "{% macro each(list) %}{% for x in list %}{{ caller(x) }}{% endfor %}{% endmacro %}{% call(x) each(messages) %}({{ x.role }}){% endcall %}",
    "{% set block %}a{{ messages | length }}b{% endset %}{{ block | upper }}{{ block | length }}",
    "{% set a, b = 'x', 'y' %}{{ a }}{{ b }}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}",
    "{% filter upper %}abc {{ messages | length }}{% endfilter %}",
    "{% raw %}{{ not }} {% for %}{% endraw %}!",
    "{% if messages | length > 2 %}many{% elif messages %}some{% else %}none{% endif %}",
    "{% if not messages or messages[0].role != 'system' %}default system{% endif %}",
    "{% for m in messages %}{%- if loop.first and m.role != 'system' -%}<default>\n{%- endif -%}{{ m.role }}{% endfor %}",
    "{%- for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{%- endfor %}",
    "{% for m in messages %}{% generation -%} {{ m.content }} {%- endgeneration %}{% endfor %}",
    # Tools and other values that are not given.
    "{% if tools is iterable and tools | length > 0 %}tools{% else %}no tools{% endif %}",
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if documents is defined and documents %}docs{% endif %}ok",
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ add_generation_prompt }}",
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}x",
    "{% set date = strftime_now('%d %B %Y') if strftime_now is defined else '26 July 2024' %}{{ date }}",
    "{% for m in messages %}{% set content = m.content if m.content is string else m.content | map(attribute='text') | join %}{{ content }}{% endfor %}",
    "{% for m in messages %}{% if m.tool_calls is defined and m.tool_calls %}call{% endif %}{{ m.content or '' }}{% endfor %}",
    "{% for m in messages %}{% if m.content is none %}none{% else %}{{ m.content[:5] }}{% endif %}|{% endfor %}",
    "{% set order = {'Tone': 'calm', 'Length': 'short', 'A-last': 'end'} %}{% for k in order %}{{ k }}={{ order[k] }};{% endfor %}{{ order }}{{ order | tojson }}",
    "{% set ns = namespace(found=false) %}{% for m in messages[::-1] %}{% if not ns.found and m.role == 'user' %}{% set ns.found = true %}{{ m.content }}{% endif %}{% endfor %}",
    "{% for m in messages %}{% if '</think>' in m.content %}{% set t = m.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}{% set c = m.content.split('</think>')[-1].lstrip('\\n') %}<t>{{ t }}</t>{{ c }}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "{% set roles = messages | map(attribute='role') | list %}{{ roles }}{{ 'tool' in roles }}{{ roles.count('user') }}{{ roles.index('user') if 'user' in roles else -1 }}",
    "{{ '%s has %d messages (%.1f%%)' % ('chat', messages | length, 12.345) }}",
    "{% if messages | selectattr('role', 'equalto', 'system') | list | length > 1 %}{{ raise_exception('one system message') }}{% endif %}{{ messages | map(attribute='role') | join(',') }}",
    "{% for row in messages | batch(2, 'fill') %}{{ row | length }}{% endfor %}",
    "{% for g in messages | groupby('role') %}{{ g.grouper }}:{{ g.list | length }};{% endfor %}",
    "{{ messages[0].content.missing_method() }}",
    "{{ messages.append('x') }}",
    "{{ 1 + 'a' }}",
    "{{ 'a' + none }}",
    "{{ undefined_name.attribute }}",
    "{{ 1 | length }}",
    "{{ none | length }}",
    "{{ '%d' % 'a' }}",
    "{{ '%s %s' % 'a' }}",
    "{{ 'abc'.index('x') }}",
    "{{ [1, 2][0:'a'] }}",
    # More of loops, macros, scopes and white space.
    "{% macro a(x, y=2, *args) %}{% endmacro %}{{ a(1) }}",
    "{% macro a() %}{{ caller is defined }}{% endmacro %}{{ a() }}",
    "{% macro a(x) -%}\n  [{{ x }}]\n{%- endmacro %}{% for m in messages %}{{- a(m.role) -}} {% endfor %}",
    "{% macro a(x) %}{% if x %}{{ caller(x, n=1) }}{% endif %}{% endmacro %}{% call(v, n=0) a('q') %}{{ v }}{{ n }}{% endcall %}",
    "{% macro outer() %}{% macro inner(x) %}<{{ x }}>{% endmacro %}{{ inner('i') }}{% endmacro %}{{ outer() }}",
    "{% set x = 'g' %}{% macro a() %}{{ x }}{% endmacro %}{% set x = 'h' %}{{ a() }}",
    "{% macro a(m) %}{{ m.role }}{% for p in m.content.split(' ') %}{{ loop.index }}{% endfor %}{% endmacro %}{{ messages | map('length') | list }}{% for m in messages %}{{ a(m) }}{% endfor %}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{% set ns.b = ns.a + 1 %}{{ ns.b }}{{ ns.c is defined }}{{ ns.c }}",
    "{% set d = {} %}{% set d.a = 1 %}{{ d }}",
    "{% set _ = messages.append(1) %}x",
    "{% set l = [] %}{% set _ = l.append('a') %}{{ l }}",
    "{% set d = {'a': 1} %}{% set _ = d.update({'b': 2}) %}{{ d }}",
    "{% do messages.append(1) %}x",
    "{% for m in messages recursive %}{{ m.role }}{% endfor %}",
    "{% for x in [[1, [2]], [3]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}{{ loop.depth }}{% endif %}{% endfor %}",
    "{% for m in messages %}{% for n in messages %}{{ loop.index }}{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %};{% endfor %}",
    "{% for m in messages %}{% break %}{% else %}empty{% endfor %}",
    "{% for m in messages if m.role != 'system' %}{{ loop.index0 }}{{ loop.previtem.role if loop.previtem else '' }}{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for k in {'b': 1, 'a': 2} %}{{ k }}{% endfor %}",
    "{% for c in 'abc' %}{{ c }}{{ loop.last }}{% endfor %}",
    "{% for x in none %}{% endfor %}",
    "{% for x in undefined_name %}x{% else %}e{% endfor %}",
    "{% for x in 5 %}x{% endfor %}",
    "{% for m in messages[1:] %}{% set outer = loop %}{% for p in 'ab' %}{{ outer.index }}{{ loop.index }}{% endfor %}{% endfor %}",
    "{% for m in messages %}{% set x = loop.index %}{% if x > 1 %}{% set x = 0 %}{% endif %}{{ x }}{% endfor %}{{ x is defined }}",
    "{% if true %}{% set y = 1 %}{% endif %}{{ y }}",
    "{% with %}{% set z = 1 %}{{ z }}{% endwith %}{{ z is defined }}",
    "{% set x %}  a\n  b {% endset %}[{{ x }}]{{ x is string }}",
    "{% set x | upper | trim %} a {{ 'b' }} {% endset %}[{{ x }}]",
    "{% filter indent(2) | upper %}a\nb{% endfilter %}",
    "{% filter replace('a', 'b') %}aaa{% endfilter %}",
    "{% set a, (b, c) = 1, (2, 3) %}{{ a }}{{ b }}{{ c }}",
    "{% set a = b = 1 %}",
    "{% set (a, b) = [1, 2] %}{{ a ~ b }}",
    "{% set a, b = [1, 2, 3] %}{{ a }}",
    "{% block body %}x{{ messages | length }}{% endblock %}{{ self.body() }}",
    "{% include 'x' %}",
    "{% include 'x' ignore missing %}y",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{% autoescape false %}{{ '<a>' }}{% endautoescape %}",
    "{% if messages %}{{ messages[0]['content'] }}{% endif -%}\n   tail\n\n",
    "{%- set x = 1 %}\n\n{%- if x %}\ny\n{%- endif %}\n",
    "  {%- for m in messages %}\n    {{- m.role }}\n  {%- endfor %}\n",
    "a {%- if true %} b {% endif -%} c",
    "a\n\n{%- raw -%}\n b {{ x }}\n{%- endraw -%}\n c",
    "{# a {{ b }} {% c %} #}x{#- y -#}  z",
    "\t{% if true %}\n\t\tx\n\t{% endif %}\ny",
    "a  {% if true %}\nb\n  {% endif %}  c\n",
    "{% if true %}\n\nx{% endif %}\n\n\ny",
    "{{ 'a' }}\n{% if false %}{% endif %}\n\n{{ 'b' }}",
    "{% set x = 1 %}\n{% set y = 2 %}\n{{ x + y }}\n",
    "x\n{%- if true +%}\ny{% endif %}",
    "x {{- ' y ' -}} z",
    "{{ '{{' }}{{ '}}' }}{{ '{%' }}{{ '#}' }}",
    "{{ \"a{# b #}c\" }}",
    "{% if 'a' %}{{ 'x' }}{% elif undefined_name.x %}y{% endif %}",
    "{% if messages is defined and messages[0].role == 'user' if messages else false %}u{% endif %}",
    "{% if loop is defined %}l{% else %}n{% endif %}",
    "{% for m in messages %}{{ raise_exception('role ' ~ m.role) if m.role not in ['user', 'assistant'] else '' }}{{ m.role }}{% endfor %}",
    "{% if messages | length % 2 %}odd{% else %}even{% endif %}",
    "{% set tools = tools or [] %}{{ tools | length }}{{ tools is defined }}",
    "{% set add = add_generation_prompt | default(false) %}{{ add }}",
    "{% if not (add_generation_prompt is defined and add_generation_prompt) %}end{% endif %}",
    "{% set thinking = enable_thinking | default(true, true) %}{% if thinking %}<think>{% endif %}",
    "{% set sys = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\\n\\n') %}{% set rest = messages | rejectattr('role', 'equalto', 'system') | list %}{{ sys }}|{{ rest | length }}",
    "{% set last = messages | selectattr('role', 'equalto', 'user') | list | last %}{{ last.content if last else 'none' }}",
    "{% set ns = namespace(i=0) %}{% for m in messages | reverse %}{% if m.role == 'user' %}{% set ns.i = messages | length - loop.index %}{% break %}{% endif %}{% endfor %}{{ ns.i }}",
    "{% set ns = namespace(is_first=true, prompt='') %}{% for m in messages %}{% if m['role'] == 'system' %}{% set ns.prompt = ns.prompt + ('' if ns.is_first else '\\n\\n') + m['content'] %}{% set ns.is_first = false %}{% endif %}{% endfor %}{{ ns.prompt }}",
    "{% macro render(value, depth=0) %}{% if value is mapping %}{% for k, v in value | items %}{{ '  ' * depth }}{{ k }}:\n{{ render(v, depth + 1) }}{% endfor %}{% elif value is iterable and value is not string %}{% for v in value %}{{ '  ' * depth }}- {{ render(v, 0) }}{% endfor %}{% else %}{{ '  ' * depth }}{{ value }}\n{% endif %}{% endmacro %}{{ render({'a': {'b': [1, 'x']}, 'c': none}) }}",
    "{% macro type_of(p) %}{% set map = {'string': 'str', 'number': 'float'} %}{% if p.type is defined and p.type in map %}{{ map[p.type] }}{% elif p.type == 'array' %}list[{{ type_of(p['items']) }}]{% else %}Any{% endif %}{% endmacro %}{{ type_of({'type': 'array', 'items': {'type': 'string'}}) }}",
    "{% set props = {'city': {'type': 'string', 'enum': ['a', 'b']}} %}{% for name, p in props.items() %}{{ name }}{{ ': ' ~ (p.enum | map('tojson') | join(' | ')) if p.enum }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for m in messages %}{% set parts = m.content.split('\\n') %}{% for p in parts %}{{ '> ' ~ p }}{{ '\\n' if not loop.last }}{% endfor %}{% endfor %}",
    "{{ messages | map(attribute='role') | select('equalto', 'user') | list | length }}{{ messages | map(attribute='content') | map('trim') | select | join('\\n') }}",
    "{% generation %}{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}{% endgeneration %}tail",
    "{% for m in messages %}{% if m.role == 'assistant' %}\n{% generation %}\n{{ m.content }}\n{% endgeneration %}\n{% endif %}{% endfor %}",
    "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "{% for m in messages %}{%- generation -%}{% set y = m.role %}{{ y }}{%- endgeneration -%}{% endfor %}",
    "{{ messages[0].role if messages | length > 0 else raise_exception('empty') }}",
    "{{ raise_exception() }}",
    "{{ raise_exception('a', 'b') }}",
    "{% set _ = raise_exception('x') if false %}ok",
    "{{ bos_token if bos_token is defined else '' }}{{ pad_token is defined }}{{ unk_token }}",
    "{{ strftime_now() }}",
    "{{ x }}{% set x = 1 %}{{ x }}",
    "{% set a = messages %}{% set a = a[1:] %}{{ a | length }}/{{ messages | length }}",
    "{% set ns = namespace(l=[]) %}{% for m in messages %}{% set ns.l = ns.l + [m.role] %}{% endfor %}{{ ns.l | join(',') }}",
    "{% set ns = namespace(l=[]) %}{% for m in messages %}{% set ns.l = ns.l + [{'role': m.role, 'content': m.content | upper}] %}{% endfor %}{{ ns.l | tojson }}",
    "{% for m in messages %}{% set m = {'role': 'x'} %}{{ m.role }}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'user' and loop.index0 == 0 or m.role == 'system' and not loop.last %}A{% endif %}{% endfor %}",
    "{{ 'a' if false }}{{ ('b' if false) ~ 'c' }}{{ ('b' if false) | default('d') }}",
    "{% for m in messages -%}\n{{ m.role }}:\n{%- if m.content %} {{ m.content }}{% endif %}\n{% endfor -%}\nend",
    "{%if true%}x{%endif%}{{1}}{%-if true-%} y {%-endif-%}",
    "{{\n'a'\n~\n'b'\n}}{%\nif true\n%}x{%\nendif\n%}",
    "{{ {'a': 1,\n 'b': 2} }}",
    "{% for %}{% endfor %}",
    "{% unknown_tag %}",
    "{{ 1 | unknown_filter }}",
    "{{ 1 is unknown_test }}",
    "{% if false %}{{ 1 | unknown_filter }}{% endif %}",
    "{% macro %}{% endmacro %}",
    "{% call x() %}{% endcall %}",
    "{{ loop.index }}",
]


def main():
    sources = ["{%% for m in messages %%}{%% set c = m.content %%}[{{ %s }}]{%% endfor %%}" % e for e in EXPRESSIONS]
    out = []
    for source in sources + TEMPLATES:
        env = environment()
        rendered = []
        for chat in CHATS:
            for prompt in (True, False):
                try:
                    text = env.from_string(source).render(
                        messages=chat,
                        add_generation_prompt=prompt,
                        bos_token="<s>",
                        eos_token="</s>",
                        tools=None,
                        documents=None,
                    )
                except Exception:  # any error is an error of the template
                    text = None
                rendered.append(text)
        hashes = [None if t is None else hashlib.sha256(t.encode()).hexdigest()[:16] for t in rendered]
        out.append(json.dumps({"template": source, "hashes": hashes}, ensure_ascii=False))
    chats = json.dumps(CHATS, ensure_ascii=False)
    sys.stdout.write('{"chats": %s,\n"templates": [\n%s\n]}\n' % (chats, ",\n".join(out)))


if __name__ == "__main__":
    main()
