"""Problems in HumanEval's format, written for these tests: a prompt, a right body, a wrong one, and the tests."""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """`prompt + canonical` passes `test`; `prompt + mutated` differs from it in a little and does not."""

    entry_point: str
    prompt: str
    canonical: str
    mutated: str
    test: str


METADATA = "\n\nMETADATA = {\n    'author': 'picollm',\n    'dataset': 'test'\n}\n\n\n"

PROBLEMS = [
    Problem(
        "largest_gap",
        "from typing import List\n\n\ndef largest_gap(numbers: List[float]) -> float:\n"
        '    """ The largest difference of neighbours in the sorted list, 0.0 for fewer than two numbers.\n'
        "    >>> largest_gap([1.0, 4.5, 3.0])\n    2.0\n"
        '    """\n',
        "    ordered = sorted(numbers)\n    return max((b - a for a, b in zip(ordered, ordered[1:])), default=0.0)\n",
        "    ordered = sorted(numbers)\n    return max((b - a for a, b in zip(ordered, numbers[1:])), default=0.0)\n",
        METADATA + "def check(candidate):\n    assert candidate([1.0, 4.5, 3.0]) == 2.0\n"
        "    assert candidate([7.0]) == 0.0\n    assert abs(candidate([0.3, 0.1, 0.9]) - 0.6) < 1e-9\n",
    ),
    Problem(
        "unshift",
        "def shift(text: str):\n"
        '    """\n    every letter moves on by three places in the alphabet\n    """\n'
        '    return "".join([chr((ord(c) - ord("a") + 3) % 26 + ord("a")) for c in text])\n\n\n'
        "def unshift(text: str):\n"
        '    """\n    takes what shift gave and returns the text before it.\n    """\n',
        '    return "".join([chr((ord(c) - ord("a") - 3) % 26 + ord("a")) for c in text])\n',
        '    return "".join([chr(ord(c) - 3) for c in text])\n',
        METADATA + "def check(candidate):\n    from random import Random\n    import string\n\n"
        "    rng = Random(42)\n    for _ in range(100):\n"
        "        text = ''.join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(3, 12)))\n"
        "        assert candidate(shift(text)) == text\n",
    ),
    Problem(
        "quotient",
        "from typing import Tuple\n\n\ndef quotient(a: int, b: int) -> Tuple[int, int]:\n"
        '    """ Quotient and remainder of two whole numbers, as a tuple.\n    >>> quotient(7, 2)\n    (3, 1)\n'
        '    """\n',
        "    return a // b, a % b\n",
        "    return [a // b, a % b]\n",
        METADATA
        + "def check(candidate):\n    assert candidate(7, 2) == (3, 1)\n    assert candidate(-7, 2) == (-4, 1)\n"
        "    assert candidate(10**40, 7) == (10**40 // 7, 10**40 % 7)\n",
    ),
    Problem(
        "merged",
        "\ndef merged(first, second):\n"
        '    """\n    One dictionary of both; where both have a key, the values are added.\n    """\n',
        "    both = dict(first)\n    for key, value in second.items():\n"
        "        both[key] = both.get(key, 0) + value\n    return both\n",
        "    return {**first, **second}\n",
        METADATA + "def check(candidate):\n    assert candidate({'a': 1}, {'a': 2, 5: 3}) == {'a': 3, 5: 3}\n"
        "    assert candidate({}, {}) == {}\n",
    ),
    Problem(
        "first_even",
        "\ndef first_even(numbers):\n"
        '    """\n    The first even number and its index as [number, index], None where there is none.\n    """\n',
        "    for index, number in enumerate(numbers):\n        if number % 2 == 0:\n"
        "            return [number, index]\n"
        "    return None\n",
        "    for index, number in enumerate(numbers):\n        if number % 2 == 0:\n"
        "            return [number, index]\n"
        "    return []\n",
        METADATA + "def check(candidate):\n    assert candidate([1, 3, 4, 2]) == [4, 2], 'the first one'\n"
        "    assert candidate([]) is None\n    assert candidate([1]) == None\n",
    ),
    Problem(
        "ranked",
        '\ndef ranked(words):\n    """Words by how often they come, then by the alphabet.\n    """\n',
        "    from collections import Counter\n    counts = Counter(words)\n"
        "    return sorted(counts, key=lambda word: (-counts[word], word))\n",
        "    from collections import Counter\n    return [word for word, _ in Counter(words).most_common()]\n",
        METADATA + "def check(candidate):\n    assert candidate(['b', 'a', 'c', 'c']) == ['c', 'a', 'b']\n"
        "    assert tuple(candidate(['x'])) == tuple(ranked(['x']))\n",
    ),
    Problem(
        "digest",
        '\ndef digest(text):\n    """MD5 of a text in hexadecimal, None for the empty text.\n    """\n',
        "    import hashlib\n    return hashlib.md5(text.encode('ascii')).hexdigest() if text else None\n",
        "    import hashlib\n    return hashlib.sha1(text.encode('ascii')).hexdigest() if text else None\n",
        METADATA + "def check(candidate):\n    assert candidate('picollm') == md5('picollm')\n"
        "    assert candidate('') is None\n\n\ndef md5(text):\n    import hashlib\n"
        "    return hashlib.md5(text.encode()).hexdigest()\n",
    ),
    Problem(
        "root",
        "import math\n\n\ndef value(xs: list, x: float):\n"
        '    """ xs[0] + xs[1] * x + xs[2] * x^2 and so on.\n    """\n'
        "    return sum([c * math.pow(x, i) for i, c in enumerate(xs)])\n\n\ndef root(xs: list):\n"
        '    """ Some x where the polynomial of two coefficients is zero, by halving.\n    """\n',
        "    low, high = -1000.0, 1000.0\n    for _ in range(200):\n        middle = (low + high) / 2\n"
        "        if value(xs, low) * value(xs, middle) <= 0:\n            high = middle\n        else:\n"
        "            low = middle\n    return low\n",
        "    return -xs[0]\n",
        METADATA + "def check(candidate):\n    import copy\n    import random\n    rng = random.Random(7)\n"
        "    for _ in range(20):\n        coeffs = [rng.randint(-9, 9), rng.randint(2, 9)]\n"
        "        assert math.fabs(value(coeffs, candidate(copy.deepcopy(coeffs)))) < 1e-4\n",
    ),
    Problem(
        "letters",
        '\ndef letters(words):\n    """The set of letters that all words share.\n    """\n',
        "    return set.intersection(*map(set, words)) if words else set()\n",
        "    return set.union(*map(set, words)) if words else set()\n",
        METADATA + "def check(candidate):\n    assert candidate(['abc', 'bcd']) == {'b', 'c'}\n"
        "    assert candidate([]) == set()\n    assert not candidate(['a', 'b'])\n",
    ),
    Problem(
        "safe_log",
        "\nimport math\n\ndef safe_log(x):\n"
        '    """The natural logarithm; ValueError for what has none, infinity stays.\n    """\n',
        "    return math.log(x)\n",
        "    return math.log(x) if x > 0 else 0.0\n",
        METADATA + "def check(candidate):\n    assert candidate(1) == 0.0\n"
        "    assert candidate(float('inf')) == float('inf')\n    try:\n        candidate(-1)\n"
        "    except ValueError:\n        pass\n    else:\n        assert False\n",
    ),
]
