"""One form for the spellings of a word in short medical texts: numbers, hyphens, plurals, British and American English.

Rules in English, for comparisons only. A rule is safe where no two words of different meaning get one form; a form
itself need not be a word ("series" stays, "always" becomes "alway").
"""

from __future__ import annotations

import re
from functools import lru_cache

from mmedpo.data.text import NEGATIONS, plain, stated_words, words


def _pairs(text: str) -> list[tuple[str, str]]:
    """Return the pairs of "a:b c:d"."""
    return [(first, second) for first, _, second in (pair.partition(":") for pair in text.split())]


DENIED = "not:"  # prefix of a word after a negation in its clause

# "sided" says nothing after left or right; "with" has its opposite in the negation "without".
FUNCTION_WORDS = frozenset((
    "a", "an", "the", "and", "of", "in", "on", "at", "to", "from", "by", "for", "with", "within", "into", "onto",
    "through", "along", "during", "via", "upon", "sided",
))  # fmt: skip

_UNITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
             "twelfth")  # fmt: skip
_NUMBERS = {
    **{word: str(number) for number, word in enumerate(_UNITS + _TEENS)},
    **{word: str(number) for number, word in zip(range(20, 100, 10), _TENS, strict=True)},
    **{word: f"{i}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(i, 'th') }" for i, word in enumerate(_ORDINALS, 1)},
    **{f"{ten}-{unit}": str(10 * i + j) for i, ten in enumerate(_TENS, 2) for j, unit in enumerate(_UNITS[1:], 1)},
    "none": "0",
}
_WHOLE = {**_NUMBERS, "x-ray": "xray", "x-rays": "xray", "both": "bilateral", "bilaterally": "bilateral"}
_MEASURE = re.compile(r"(?:\d+(?:\.\d+)?(?:x|mm|cm|ml|cc|mg|kg|hu))+(?:\d+(?:\.\d+)?)?")  # "5mm", "2x3"

# Spellings of more than one word: "x ray", "non contrast", "w/o", "twenty one", "R lung", "Lt. kidney".
_APART = ("non", "semi", "intra", "infra", "supra", "peri", "retro", "sub", "hyper", "hypo", "pseudo", "multi", "anti")
_SPELLINGS = re.compile(
    rf"\b(?P<xray>x )(?=rays?\b)|\b(?P<prefix>{'|'.join(_APART)}) (?=[a-z])|\b(?P<without>w/o)\b|\b(?P<with>w/)"
    rf"|\b(?P<tens>{'|'.join(_TENS)}) (?={'|'.join(_UNITS[1:])}\b)"
    r"|(?<![\w'./-])(?<!\d )(?:(?P<right>rt?)|(?P<left>lt?))\.?(?=\s+(?!spine)[a-z]|-sided|$)"
)
_RESPELT = {"xray": "x-", "without": "without", "with": "with ", "right": "right", "left": "left"}
_RARE = frozenset(("x", "w", "r", "rt", "l", "lt", "r-sided", "l-sided", *_APART, *_TENS))

# Before a hyphen these are no words of their own: "non-contrast" lacks "contrast", "intra-axial" is "intraaxial".
_PREFIXES = frozenset((
    "anti", "bi", "co", "de", "dys", "endo", "epi", "extra", "hemi", "hyper", "hypo", "infra", "inter", "intra", "iso",
    "macro", "micro", "mid", "multi", "neo", "non", "para", "peri", "poly", "post", "pre", "pseudo", "re", "retro",
    "semi", "sub", "supra", "trans", "ultra", "un", "uni",
))  # fmt: skip
_COMBINING = re.compile(r"(?!zero|echo)[a-z]{3,}o")  # "costo-phrenic", "gastro-esophageal"

_SAME = frozenset((
    "ascites", "atlas", "azygos", "bias", "biceps", "canvas", "caries", "diabetes", "facies", "faeces", "feces",
    "forceps", "gas", "herpes", "lens", "measles", "mumps", "news", "pancreas", "pons", "psoas", "pubes", "quadriceps",
    "rabies", "rickets", "scabies", "series", "species", "stapes", "triceps", "yes", "semi", "multi", "anti", "mini",
))  # fmt: skip
_PLURALS = dict(
    _pairs("""
    apices:apex appendices:appendix axes:axis calces:calx calices:calyx calyces:calyx cervices:cervix cortices:cortex
    fornices:fornix helices:helix indices:index matrices:matrix phalanges:phalanx varices:varix vertices:vertex
    larynges:larynx pharynges:pharynx crises:crisis pelves:pelvis pelvises:pelvis testes:testis irises:iris irides:iris
    nares:naris gases:gas gasses:gas lenses:lens pancreases:pancreas biases:bias echoes:echo calories:calorie
    feet:foot teeth:tooth men:man women:woman children:child calves:calf halves:half leaves:leaf cts:ct cms:cm mris:mri
    femora:femur corpora:corpus crura:crus foramina:foramen lumina:lumen stigmata:stigma ganglia:ganglion
    criteria:criterion phenomena:phenomenon acetabula:acetabulum antra:antrum atria:atrium bacteria:bacterium
    crania:cranium diverticula:diverticulum haustra:haustrum hila:hilum hili:hilum ilia:ilium infundibula:infundibulum
    labia:labium mediastina:mediastinum ostia:ostium ova:ovum septa:septum sterna:sternum
    causes:cause uses:use houses:house pauses:pause fuses:fuse diffuses:diffuse abuses:abuse
    closes:close doses:dose exposes:expose hoses:hose loses:lose noses:nose overdoses:overdose poses:pose
    purposes:purpose roses:rose
    """)
)
# The first ending that fits counts. What ends in -ss, -us or -is is no plural.
_ENDINGS = (
    ("ss", "ss"), ("us", "us"), ("is", "is"), ("thoraces", "thorax"), ("omata", "oma"), ("itides", "itis"),
    ("oses", "osis"), ("stases", "stasis"), ("ectases", "ectasis"), ("iases", "iasis"), ("yses", "ysis"),
    ("theses", "thesis"), ("pareses", "paresis"), ("uses", "us"), ("sses", "ss"), ("xes", "x"), ("shes", "sh"),
    ("headaches", "headache"), ("ches", "ch"), ("ies", "y"), ("ae", "a"), ("i", "us"), ("s", ""),
)  # fmt: skip
_AMERICAN = _pairs("""
    haem:hem aemi:emi oedem:edem ooe:oe foet:fet coeli:celi caec:cec faec:fec paed:ped gynaec:gynec
    anaesth:anesth aetiol:etiol rrhoea:rrhea pnoea:pnea praevia:previa caesar:cesar leuco:leuko sulph:sulf
    tumour:tumor colour:color behaviour:behavior labour:labor neighbour:neighbor odour:odor grey:gray fibreo:fibero
    """)
_AMERICAN_ENDINGS = (("isation", "ization"), ("ised", "ized"), ("ising", "izing"), ("ise", "ize"), ("ysed", "yzed"),
                     ("tre", "ter"), ("bre", "ber"))  # fmt: skip
_DENIES = NEGATIONS | {"no"}
_DENIES_NOTHING = re.compile(r"\bno doubt\b|\bnot (?:only|just|merely|solely|simply)\b|\bwithout (?:a |any )?doubt\b")
_CLAUSE_ENDS = re.compile(  # where another statement begins, and with "without" at the next preposition
    r"(?= (?:while|whereas|although|though|however|because|since)\b"
    r"| and (?:the|an?|there|it|this|they)\b[^,.;:!?\n]{0,99} (?:is|are|was|were|has|have|shows?|appears?|contains?)\b)"
    r"|\bwithout\b(?: [\w-]+){1,4}?(?= (?:in|on|at|within|from|and|with|shows?|showing)\b)"
)


def normal_words(text: str) -> list[str]:
    """Return the normal forms of a text's words in order; those after a negation in their clause begin with `DENIED`.

    Example:
        >>> normal_words("Two T2-weighted x-rays of the right-sided tumours")
        ['2', 't2', 'weighted', 'xray', 'of', 'the', 'right', 'sided', 'tumor']
        >>> normal_words("CT without contrast"), normal_words("non contrast CT")
        (['ct', 'without', 'not:contrast'], ['noncontrast', 'ct'])
    """
    text = text.replace("×", " x ").replace("%", " percent")
    found = words(text)
    if not _RARE.isdisjoint(found):
        text = _SPELLINGS.sub(_respelt, plain(text).casefold())
        found = words(text)
    contracted = not text.isascii() or "'" in text
    if _DENIES.isdisjoint(found) and not (contracted and any(word.endswith("n't") for word in found)):
        return [part for word in found for part in _parts(word)]
    text = _CLAUSE_ENDS.sub(r"\g<0>,", _DENIES_NOTHING.sub(" ", plain(text).casefold()))
    return [
        part if stated or part in FUNCTION_WORDS else DENIED + part
        for word, stated in stated_words(text, determiners=True)
        for part in _parts(word)
    ]


def content_words(found: list[str]) -> list[str]:
    """Return normal words without `FUNCTION_WORDS`; a last "a" is a name ("hepatitis A")."""
    kept = [word for word in found if word not in FUNCTION_WORDS]
    return [*kept, "a"] if found[-1:] == ["a"] else kept


@lru_cache(maxsize=65536)
def singular(word: str) -> str:
    """Return the singular of a lower-case English or Latin noun, and a word that is no plural unchanged.

    Example:
        >>> [singular(word) for word in ("masses", "opacities", "metastases", "vertebrae", "bronchi", "pelvis")]
        ['mass', 'opacity', 'metastasis', 'vertebra', 'bronchus', 'pelvis']
    """
    if word in _PLURALS:
        return _PLURALS[word]
    if len(word) < 4 or word in _SAME or not word.isalpha():
        return word
    ending, single = next((pair for pair in _ENDINGS if word.endswith(pair[0])), ("", ""))
    return word.removesuffix(ending) + single


def _respelt(match: re.Match[str]) -> str:
    joined = match["tens"] or match["prefix"]
    return f"{joined}-" if joined else _RESPELT[match.lastgroup or ""]


@lru_cache(maxsize=65536)
def _parts(word: str) -> tuple[str, ...]:
    """Return the normal forms of a word's parts: "left-sided" has two, "non-contrast" one."""
    word = word.removesuffix("'s")
    if word in _WHOLE:
        return (_WHOLE[word],)
    found: list[str] = []
    prefix = ""
    *before, last = word.replace("_", "-").split("-")
    for part in before:
        if part in _PREFIXES or _COMBINING.fullmatch(part):
            prefix += part
        else:
            found.append(prefix + part)
            prefix = ""
    return tuple(form for part in [*found, prefix + last] for form in _forms(part))


def _forms(word: str) -> tuple[str, ...]:
    """Return the normal form of a word without hyphens; of a measure such as "5mm" its numbers and units."""
    if _MEASURE.fullmatch(word):
        return tuple(re.findall(r"[\d.]+|[a-z]+", word))
    if word in _NUMBERS:
        return (_NUMBERS[word],)
    if word in ("t1w", "t2w"):
        return word[:2], "weighted"
    word = singular(word)
    word = word[1:] if word.startswith("oe") else word
    for british, american in _AMERICAN:
        word = word.replace(british, american)
    ending, american = next((pair for pair in _AMERICAN_ENDINGS if word.endswith(pair[0])), ("", ""))
    return (word.removesuffix(ending) + american,)
