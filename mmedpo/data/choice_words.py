"""English words and phrases by which `choices` reads the options of a question and the one that an answer asserts."""

from __future__ import annotations

import re

from mmedpo.data import yes_no_words as closed
from mmedpo.data.text import NEGATIONS

ARTICLES = frozenset(("a", "an", "the"))
# Names of one modality, projection or sex; words are split at hyphens, but "x-ray" stays one.
MODALITIES = (
    ("ct", "cat scan", "computed tomography", "computerized tomography", "computerised tomography"),
    ("mri", "mr", "magnetic resonance", "magnetic resonance imaging", "mr imaging", "magnetic resonance image"),
    ("x-ray", "xray", "radiograph", "radiography", "cxr", "plain film"),
    ("ultrasound", "ultrasonography", "sonography", "sonogram", "us"),
    ("pet", "positron emission tomography"),
    ("ap", "anteroposterior", "antero posterior"),
    ("pa", "posteroanterior", "postero anterior"),
    ("iv", "intravenous"),
    ("male", "man"),
    ("female", "woman"),
)
# Words at the end of a modality or side that an answer may leave out or add ("CT scan", "left side").
CARRIERS = frozenset((
    "scan", "image", "imaging", "film", "view", "side", "plane", "weighted", "study", "projection", "machine",
    "scanner",
))  # fmt: skip
SPELLINGS = {
    "grey": "gray", "homogenous": "homogeneous", "heterogenous": "heterogeneous", "radioopaque": "radiopaque",
    "saggital": "sagittal", "abcess": "abscess", "tumour": "tumor", "oedema": "edema", "haemorrhage": "hemorrhage",
    "unenhanced": "nonenhanced", "t1w": "t1", "t1wi": "t1", "t2w": "t2", "t2wi": "t2",
    "rightward": "right", "rightwards": "right", "leftward": "left", "leftwards": "left",
}  # fmt: skip
NUMBERS = {
    name: str(i)
    for i, name in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))
}

QUANTITIES = frozenset(NUMBERS) | {"multiple", "single", "several", "many", "few"}

# What follows is only compared with, in an answer.
CUTS = frozenset((
    "than", "rather", "instead", "opposed", "compared", "comparison", "comparing", "relative", "unlike", "versus",
    "vs", "vs.", "among", "amongst", "between", "contrary", "distinguished", "different", "differs", "opposite", "then",
    "followed", "except",
))  # fmt: skip
DENIALS = NEGATIONS | frozenset((
    "lack", "lacks", "lacking", "absence", "excludes", "exclude", "excluding", "rules", "ruling", "unlikely",
    "incapable", "fails", "devoid",
))  # fmt: skip
LIMITS = closed.LIMITS | {"necessarily"}  # "not only the left" denies nothing
# An option before one of these is denied.
DENIED = closed.BACKWARD | closed.FALSE | {"nonexistent", "existent", "wrong", "unlikely"}
# After "not" they deny what stands before ("the left lung is not affected").
AFFIRMED = closed.PRESENCE | {
    "affected", "involved", "abnormal", "enlarged", "correct", "right", "true", "it", "applicable", "possible",
    "likely", "here", "diseased", "the",
}  # fmt: skip
# So is what they place an asserted option beside ("the liver, next to the spleen").
BESIDE = frozenset((
    "next", "beside", "near", "adjacent", "close", "behind", "touching", "bordering", "below", "above", "under", "over",
))  # fmt: skip
OTHERS = frozenset(("other", "additional", "further", "another", "new", "more"))  # denied, it denies nothing before
HEALTHY = frozenset(("normal", "unremarkable", "healthy", "clear", "intact", "unaffected", "spared", "uninvolved"))
HEDGES = frozenset((
    "may", "might", "could", "maybe", "perhaps", "possibly", "if", "whether", "unclear", "typically", "usually",
    "generally", "often", "possible", "sometimes", "either", "depends", "question", "options", "choices",
))  # fmt: skip
BREAKS = closed.BREAKS | {"suggesting", "specifically", "as", "so", "where", "therefore", "thus", "hence", "due"}
VERBS = frozenset((
    "is", "are", "was", "were", "has", "have", "shows", "show", "appears", "appear", "seems", "looks", "isn't",
    "aren't", "does", "do", "it's", "that's", "remains", "lies",
))  # fmt: skip
CONCLUDES = frozenset((
    "answer", "therefore", "thus", "hence", "conclusion", "final", "finally", "overall", "correct", "corresponds",
    "corresponding",
))  # fmt: skip

BIG = frozenset((
    "bigger", "biggest", "larger", "largest", "greater", "greatest", "more", "most", "higher", "highest", "brighter",
    "brightest", "denser", "densest", "thicker", "thickest", "wider", "widest", "longer", "longest", "big", "large",
    "great", "huge", "better", "heavier", "heaviest", "occupies",
))  # fmt: skip
SMALL = frozenset((
    "smaller", "smallest", "less", "least", "fewer", "lower", "lowest", "darker", "darkest", "thinner", "thinnest",
    "narrower", "narrowest", "shorter", "shortest", "small", "tiny", "little", "lighter", "lightest",
))  # fmt: skip
SIZES = BIG | SMALL
COMPARATIVES = SIZES - {
    "big", "large", "great", "huge", "small", "tiny", "little", "lower", "more", "less", "most", "occupies", "better",
}  # fmt: skip
AS_BIG = frozenset(("same", "similar", "large", "big", "small"))  # "as large as", "the same size as"
# A question that holds one asks where something is wrong, so that a normal option is denied.
ASKED_ILL = closed.LESIONS | closed.STATES | {
    "abnormal", "abnormality", "abnormalities", "pathology", "pathologic", "pathological", "disease", "diseased",
    "affected", "involved", "injured", "damaged", "wrong", "problem",
}  # fmt: skip

# Refusals of choices, besides those of yes/no answers.
DECLINES = re.compile(
    rf"{closed.DECLINES.pattern}|{closed.REMARKS.pattern}|\b(?:indeterminate|undetermined|unanswerable|no idea"
    r"|(?:can ?not|can't|could not|couldn't|difficult to|hard to|do(?:es)? not allow \w+ to) (?:\w+ )?"
    r"(?:distinguish|differentiate|identify|see|view|access|interpret|choose|decide|select|tell|analy[sz]e"
    r"|be (?:answered|identified|distinguished))"
    r"|does(?: not|n't) (?:provide|specify|mention|indicate)"
    r"|without (?:more|further|additional) (?:\w+ )?(?:information|context))\b"
)

# Of questions
ASKS = frozenset((
    "is", "are", "was", "were", "do", "does", "did", "can", "could", "has", "have", "had", "will", "would", "should",
    "is/are", "are/is",
))  # fmt: skip
WH = frozenset(("what", "which", "where", "how", "who", "when", "why"))
# The first option of a question begins after one of these.
STARTS = ARTICLES | ASKS | frozenset((
    "this", "that", "these", "those", "it", "its", "there", "he", "she", "they", "you", "your", "in", "on", "at",
    "to", "of", "from", "for", "by", "with", "within", "as", "between", "into", "using", "show", "shows", "showing",
    "suspect", "favor", "favour", "expect", "think", "see", "seen", "located", "appear", "appears", "look", "looks",
    "taken", "be", "been", "most", "likely", "more likely", "whether", "if", "considered", "called", "either",
    "represent", "represents", "suggest", "suggests", "indicate", "indicates", "eg", "e.g", "i.e", "just", "only",
    "mainly", "mostly", "primarily", "predominantly", "more", "better", "described", "obtained", "acquired",
    "performed", "contain", "contains", "demonstrate", "demonstrates", "his", "her", "their", "found",
    "occupy", "say", "tell", "receive", "received", "being", "than",
    "visualized", "with", "via", "through", "under", "over",
))  # fmt: skip
# The last option of a question ends before one of these.
ENDS = frozenset((
    "in", "on", "for", "at", "from", "by", "than", "that", "which", "who", "when", "relative", "compared", "used",
    "taken", "seen", "shown", "visible", "present", "highlighted", "affected", "involved", "depicted", "displayed",
    "identified", "noted", "observed", "detected", "visualized", "evident", "performed", "obtained", "acquired",
    "is", "are", "was", "were", "bigger", "larger", "smaller", "biggest", "largest", "smallest", "abnormal",
    "enlarged", "according", "based", "most", "more", "as", "given", "administered", "here", "has", "have", "appears",
    "inflamed", "fractured", "displaced", "thickened", "injured", "damaged", "diseased", "swollen", "obscured",
    "within", "occupy", "show", "shows", "be", "using", "do", "does", "can", "would", "should",
))  # fmt: skip
PREDICATES = ENDS - {"in", "on", "for", "at", "from", "by", "than", "that", "relative", "compared", "within", "as"}
LEADING = ARTICLES | frozenset((
    "in", "on", "at", "to", "just", "only", "is", "it", "are", "they", "of", "this", "more", "from", "for", "by",
    "rather", "either", "as", "does", "was", "an", "within", "its", "eg", "e.g", "i.e", "their",
))  # fmt: skip
MODIFIERS = frozenset((
    "left", "right", "upper", "lower", "middle", "gray", "grey", "white", "black", "dark", "bright", "t1", "t2", "ap",
    "pa", "iv", "high", "low", "more", "less", "one", "both", "two", "three", "four", "single", "multiple", "contrast",
    "male", "female", "benign", "acute", "chronic", "above", "below", "inside", "outside", "large", "small", "first",
    "second", "third", "fourth", "mild", "moderate", "severe", "old", "new", "early", "late", "inner", "outer", "front",
    "back", "top", "bottom", "with", "without", "normal", "abnormal", "true", "false", "frontal", "head", "body",
    "before", "after", "diffuse", "superior", "inferior", "smooth", "chest", "tail", "neck", "apex", "base",
))  # fmt: skip
PREFIXES = frozenset(("hyper", "hypo", "non", "iso", "multi", "radio", "semi"))
MODIFIER_ENDINGS = ("al", "ic", "ed", "ous", "ive", "ary", "ior", "ar", "oid", "ine", "ense", "ant", "ile", "ing", "id")
# After "there", "any" and the like "or" joins what a yes or no asks for.
ANY = frozenset(("any", "evidence", "sign", "signs", "anything", "indication", "indications"))
OBJECT_VERBS = frozenset((
    "show", "have", "has", "contain", "reveal", "demonstrate", "see", "evaluate", "need", "require", "identify", "make",
    "detect", "made", "visualize", "assess", "diagnose", "exhibit", "observe", "had",
))  # fmt: skip
# Members of one group exclude each other, so that a question which names two offers them.
GROUPS = (
    *closed.GROUPS, ("left", "right", "both", "bilateral"), ("upper", "lower", "middle"),
    ("axial", "transverse", "transaxial"),
    ("ct", "mri", "x-ray", "ultrasound", "mr", "pet"), ("pa", "ap", "lateral", "frontal"), ("normal", "abnormal"),
    ("hyperintense", "hypointense", "isointense"), ("hyperdense", "hypodense", "isodense"), ("hyper", "hypo"),
    ("increased", "decreased", "normal"), ("acute", "chronic", "subacute"), ("t1", "t2", "flair"), ("one", "both"),
    ("single", "multiple", "just", "only", "one", "1"), ("one", "two", "three", "four"), ("more", "less"),
    ("gray", "white", "black", "grey"), ("with", "without"), ("above", "below"), ("elevated", "depressed", "lowered"),
    ("dilated", "narrowed", "collapsed", "compressed"), ("focal", "diffuse"), ("enlarged", "shrunken", "small"),
    ("high", "low"), ("large", "small"), ("oral", "iv"), ("regular", "irregular"), ("mild", "moderate", "severe"),
    ("widened", "narrowed"), ("superficial", "deep"), ("proximal", "distal"), ("internal", "external"),
    ("open", "closed"), ("inner", "outer"), ("over", "under"), ("smooth", "irregular", "rough"),
)  # fmt: skip


def modifies(word: str) -> bool:
    """Return True for a lower-case word that may stand before a noun that options share ("left or right lung")."""
    return word in MODIFIERS or word in PREFIXES or word.endswith(MODIFIER_ENDINGS) or word[0].isdigit()
