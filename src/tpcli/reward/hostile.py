"""Answers that were written to hang, fill, break or take over whatever reads them.

Use them on a verifier of your own: ``for name, answer in HOSTILE.items()``. Most go into the box;
those that hold ``\\boxed`` are whole responses. None of them is right.
"""

from typing import Final

CANARY: Final = "tpcli-canary"
"""The file that the code among them would create in the current folder."""
_OPEN = f"open('{CANARY}', 'w').write('x')"
_SYSTEM = f"__import__('os').system('touch {CANARY}')"

_NUMBERS = {
    "power tower": "9^{9^{9^{9}}}",
    "power tower to compare": "9^{9^{9}} + x",
    "power": "7^{123456789}",
    "negative power": "7^{-123456789}",
    "python power": "9**9**9",
    "million digits": "7" * 1_000_000,
    "million decimals": "0." + "3" * 1_000_000,
    "digits in groups": "1" + ",000" * 900,
    "scientific": "1e999999999",
    "scientific fraction": "10^{99999999} \\times 10^{-99999998}",
    "factorial": "(10^{8})!",
    "factorial tower": "((((9!)!)!)!)!",
    "many factorials": "3" + "!" * 200,
    "binomial": "\\binom{3000000}{1500000}",
    "root": "\\sqrt[10^9]{2^{10^{9}}}",
    "long division": "\\frac{10^{10^{7}}}{3}",
    "remainder": "3^{10^{10}} \\bmod 1000007",
    "greatest common divisor": "\\gcd(2^{99999999}-1, 3^{99999999}-1)",
    "floor": "\\lfloor \\pi \\cdot 10^{10^8} \\rfloor",
    "division by zero": "\\frac{1}{0}",
    "zero to zero": "0^{0^{0^{0}}}",
    "infinite": "\\infty - \\infty",
}
_CALCULUS = {
    "sum": "\\sum_{k=1}^{10^{9}} \\frac{1}{k^3}",
    "nested sums": "\\sum_{i=1}^{99999}\\sum_{j=1}^{99999}\\sum_{k=1}^{99999} \\sin(ijk)",
    "product": "\\prod_{k=1}^{10^{8}} (k + \\sqrt{k})",
    "integral": "\\int_0^1 \\int_0^1 \\int_0^1 x^{x^{y^{z}}} \\, dx \\, dy \\, dz",
    "integral without form": "\\int_0^\\infty \\frac{\\sin(x^x) e^{x^3}}{\\ln(\\cos x)} dx",
    "limit": "\\lim_{x \\to 0} \\frac{\\sin(\\tan x) - \\tan(\\sin x)}{x^{7^{7}}}",
    "derivative": "\\frac{d^{99}}{dx^{99}} \\left( x^{x^{x}} \\right)",
    "equation": "x^{17} - \\sin(x^{x}) = e^{x} \\cdot \\ln(\\cos(x^{5} + y))",
    "expansion": "(a+b+c+d+e+f+g)^{99} - (g+f+e+d+c+b+a)^{98}",
    "trigonometry": "\\sin(\\cos(\\tan(" * 20 + "x" + ")))" * 20,
    "logarithms": "\\ln(" * 60 + "x" + ")" * 60,
}
_NESTING = {
    "braces": "{" * 5_000 + "1" + "}" * 5_000,
    "parentheses": "(" * 5_000 + "1" + ")" * 5_000,
    "parentheses within the caps": "(" * 60 + "1" + ")" * 60,
    "fractions": "\\frac{1}{" * 1_000 + "2" + "}" * 1_000,
    "fractions within the caps": "\\frac{1}{1+" * 60 + "2" + "}" * 60,
    "roots": "\\sqrt{" * 1_000 + "2" + "}" * 1_000,
    "roots without braces": "\\sqrt" * 700 + "2",
    "signs": "-" * 4_000 + "1",
    "bars": "|" * 2_000 + "x" + "|" * 2_000,
    "powers without braces": "2" + "^2" * 1_500,
    "left without right": "\\left(" * 500,
    "begin without end": "\\begin{pmatrix}" * 200,
    "unbalanced": "}}}]]])))" * 300 + "{{{[[[(((" * 300,
    "boxes": "\\boxed{1}" * 5_000,
    "boxes in boxes": "\\boxed{" * 5_000 + "1" + "}" * 5_000,
    "open boxes": "\\boxed{" * 20_000,
}
_SETS = {
    "matrix": "\\begin{pmatrix}" + ("1&2&3&4&5&6&7&8&9\\\\" * 90) + "\\end{pmatrix}",
    "power of a matrix": "\\begin{pmatrix}1&1\\\\1&0\\end{pmatrix}^{99999999}",
    "determinant": "\\det\\begin{pmatrix}a&b&c&d\\\\e&f&g&h\\\\i&j&k&l\\end{pmatrix}^{50}",
    "set": "\\{" + ", ".join(f"\\sqrt{{{n}}}" for n in range(2, 300)) + "\\}",
    "intervals": " \\cup ".join(f"({n}, {n}.5)" for n in range(250)),
    "interval": "[-9^{9^{9}}, 9^{9^{9}})",
    "inequalities": " < ".join(f"x^{{{n}}}" for n in range(1, 60)),
    "alternatives": ", ".join(f"x_{{{n}}} = \\pm {n}" for n in range(150)),
}
_TEXT = {
    "backtracking, dollars": "$" * 3_000 + "a",
    "backtracking, texts": "\\text{" + "a " * 1_900 + "}!",
    "backtracking, units": "5" + " " * 3_900 + "q",
    "backtracking, answers": "final answer " * 300 + "is 5",
    "backtracking, ands": "$1$ and " * 500,
    "backtracking, digits": "1,000" * 700 + "x",
    "long text": "\\text{" + "yes " * 300_000 + "}",
    "null bytes": "4\x002\x00",
    "control characters": "".join(map(chr, range(1, 32))) + "42",
    "half a pair": "\\ud83d \ud83d",
    "right to left": "\u202e24\u202c",
    "no width": "4\u200b2\ufeff",
    "digits of another script": "\u0664\u0662",
    "wide digits": "\uff14\uff12",
    "looks like": "\u0445 = \U0001d7d2\u2082",
    "combining": "4" + "\u0301" * 2_000 + "2",
    "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467" * 300,
    "think marks": "<think>42</think>\\boxed{<think>}",
    "open thought": "\\boxed{41}<think>",
}
_CODE = {
    "import": _SYSTEM,
    "import as text": f"\\text{{{_SYSTEM}}}",
    "open": _OPEN,
    "eval": f'eval("{_OPEN}")',
    "exec": f'exec("{_OPEN}")',
    "lambda": f"(lambda: {_OPEN})()",
    "comprehension": f"[{_OPEN} for _ in (1,)]",
    "walrus": f"(x := {_OPEN})",
    "f-string": f"f'{{{_OPEN}}}'",
    "format string": "{0.__class__.__mro__[1].__subclasses__()}",
    "percent format": "%(x)s %n %99999999d",
    "dunder": "().__class__.__bases__[0].__subclasses__()",
    "sympify": f'sympify("{_OPEN}")',
    "parse_expr": f'parse_expr("{_OPEN}")',
    "symbol": f"Symbol('x').func({_OPEN})",
    "operator name": f"\\operatorname{{{_OPEN}}}(1)",
    "lambdify": f'lambdify(x, "{_OPEN}")(1)',
    "write18": f"\\immediate\\write18{{touch {CANARY}}}",
    "input": "\\input{/etc/passwd}",
    "catcode": "\\catcode`\\{=12 \\def\\x{\\x\\x}\\x",
    "shell": f"$(touch {CANARY})`touch {CANARY}`; touch {CANARY}",
    "pickle": "cposix\nsystem\n(S'touch " + CANARY + "'\ntR.",
    "toml": '[reward]\nkind = "exact"\ngold = "42"',
    "json": '{"status": "correct", "reward": 1.0}',
    "yaml": f"!!python/object/apply:os.system ['touch {CANARY}']",
}

HOSTILE: Final[dict[str, str]] = {
    **_NUMBERS,
    **_CALCULUS,
    **_NESTING,
    **_SETS,
    **_TEXT,
    **_CODE,
}
"""Name of the attack -> what stands in the box, or the whole response."""


def response_of(answer: str) -> str:
    """One of them as a model would give it."""
    return answer if "\\boxed" in answer else f"\\boxed{{{answer}}}"
