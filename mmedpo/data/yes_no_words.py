"""Words by which yes/no answers and choices are read: hedges, refusals, negations, and what excludes what."""

from __future__ import annotations

import re

from mmedpo.data.text import NEGATIONS

# Replies that decline to say either. The last word of a match may be what the question asks about ("evaluated").
DECLINES = re.compile(
    r"\b(?=[cdehimnsu])(?:unable to \w+|unable|insufficient|depends|unsure|uncertain"
    r"|(?:not possible|impossible|difficult|hard|challenging) (?:for me )?to (?:\w+ )?"
    r"(?:say|tell|determine|answer|assess|confirm|know|provide|give|make|diagnose|evaluate|conclude|exclude)"
    r"|not (?:possible$|enough|sure|certain|clear (?:whether|if|from)|specified|mentioned|conclusive|able)"
    r"|(?:can ?not|can't|could not|couldn't|unable to) (?:\w+ )?(?:be )?(?:\w+ly )?"
    r"(?:say|tell|determined?|answer(?:ed)?|assess(?:ed)?|confirm(?:ed)?|know|provided?|excluded?|ruled? out|interpret"
    r"|diagnosed?|give|given|evaluated?|help|comment|make|conclude|verify|view|analyze)"
    r"|no (?:\w+ )?(?:data|information)|(?:do not|don't) know|i (?:do not|don't) have|(?<!of )unknown|need more"
    r"|(?:enough|sufficient|more) information"
    r"|(?:i'm|i am) not (?:sure|able|qualified|certain))\b"
)
# Remarks that decline only where nothing is stated.
REMARKS = re.compile(r"\b(?:sorry|as an ai|language model|consult|not a (?:doctor|radiologist|physician))\b")
HEDGES = frozenset((
    "may", "might", "maybe", "perhaps", "possible", "possibly", "probable", "probably", "likely", "unlikely", "if",
    "whether", "suspected", "suspicious", "suspicion", "unclear", "would", "should", "must", "concerning",
    "potential", "potentially", "presumably", "presumed", "questionable", "equivocal", "indeterminate", "doubtful",
    "differential", "versus", "vs", "mimics", "resembles", "could", "either", "uncertain", "concern", "worried",
    "common", "commonly", "typically", "usually", "generally", "often",
))  # fmt: skip
# Words before a statement that do not weaken it, and statements about no image at all.
NOISE = re.compile(
    r"\b(?:(?:it )?(?:should|must|may) (?:also )?be noted(?: that)?|i would (?:say|answer)(?: that)?"
    r"|not only|(?:there is |without )(?:no |any |a )?(?:reason to )?doubt(?: that)?)\b"
)
UNSAID = re.compile(
    r"\b(?:(?:to|can|cannot|not) (?:exclude|rule out)|(?:evaluat(?:e|ed|ion)|assess|check|look(?:ing)?|screen|risk)"
    r" (?:for|of)|history|(?:previous|prior|earlier) \w+"
    r"|(?:hard|difficult) to|to treat|treat(?:ed|ment)|limits? of normal|borderline"
    r"|(?:upper|high|low|near) normal|normal in (?!size|appearance|shape|caliber|the|this|these|both|all|an?)\w+"
    r"|little (?:evidence|sign)|used (?:to|for)|refers to"
    r"|is defined|can (?:\w+ )?(?:indicate|suggest|represent|cause|be a)"
    r"|is an? (?:\w+ )?(?:type|form|kind|condition|disease|term|technique) (?:of|that|in|where|which))\b"
)
# Words that begin a question; without one, a question is elliptical ("Fracture?").
ASKS = frozenset((
    "is", "are", "was", "were", "do", "does", "did", "can", "could", "has", "have", "had", "will", "any", "anything",
    "isn't", "aren't", "doesn't", "don't", "wasn't", "hasn't",
))  # fmt: skip
WH_WORDS = frozenset((
    "what", "which", "where", "when", "who", "whose", "why", "how", "name", "describe", "list", "identify",
))  # fmt: skip
FORWARD = NEGATIONS | frozenset((
    "no", "none", "non", "lack", "lacks", "lacking", "absence", "fails", "fail", "failed", "devoid", "excludes",
    "incapable", "against", "denies", "nowhere", "insufficient", "nope",
    "impossible",
))  # fmt: skip
# These deny what follows as pairs only ("rather than", but "rather large").
PAIRS = frozenset((
    ("rather", "than"), ("instead", "of"), ("opposed", "to"), ("free", "of"), ("free", "from"), ("clear", "of"),
))  # fmt: skip
NOUNS = frozenset(("lack", "absence"))  # they deny up to the next verb ("the absence of gas suggests ...")
LIMITS = frozenset(("only", "solely", "merely", "just", "simply", "doubt"))  # "not only", "no doubt" deny nothing
EXCEPT = frozenset(("except", "apart", "besides", "aside", "beyond", "otherwise"))
OF = frozenset(("of", "in", "to", "within", "around", "from", "on", "for"))
BACKWARD = frozenset((
    "absent", "excluded", "spared", "resolved", "removed", "resected", "gone", "disappeared", "undetected",
    "unaffected", "uninvolved", "negative", "missing",
))  # fmt: skip
FALSE = frozenset(("false", "incorrect", "untrue"))  # said of the whole statement
PRESENCE = frozenset((
    "seen", "visible", "present", "identified", "noted", "evident", "observed", "detected", "demonstrated", "shown",
    "appreciated", "found", "visualized", "visualised", "apparent", "recognized", "there", "depicted", "exist",
    "exists", "obvious", "located", "included", "identifiable", "given", "administered", "received", "used", "injected",
))  # fmt: skip
SCAN = r"(?:x-?rays?|ct|cts|mri|mris|mr|cxr|ultrasound|radiograph|scan|image|picture|film|study|slice|section|view)"
COMPARED = re.compile(r"\b(?:than|from) (?:its |their |the )?normal\b")  # nothing is called normal there
# Before a noun it says nothing ("a clear fracture"), and else normal ("the lungs are clear").
CLEAR = re.compile(r"\bclear (?!in\b|and\b|of\b|with|without|bilaterally|on\b|or\b)(?=\w)")
IN_SCAN = re.compile(rf"\b(?:in|on|from|by|within) (?:this|the|these|that|above)(?: [\w-]+){{0,2}}? {SCAN}s?\b")
OF_SCAN = re.compile(  # who shows it is not asked
    rf"^(do|does|did) (?:this|the|these) (?:[\w-]+ ){{0,2}}?{SCAN}s? (?=show|demonstrat|contain|reveal|display|depict)"
)
A_SCAN = re.compile(
    rf"\b(?:[\w-]+-weighted |chest |brain |head |abdominal |abdomen |axial ){{0,4}}{SCAN}(?: {SCAN}){{0,4}}"
    r"(?: of the (?:abdomen|brain|chest|head|pelvis|thorax|spine|neck))?\b"
)
# Words without content of their own: they neither name what is asked for nor make an answer be about something else.
EMPTY = ASKS | PRESENCE | frozenset((
    "a", "an", "the", "this", "that", "these", "those", "it", "its", "they", "their", "he", "she", "his", "her", "i",
    "of", "in", "on", "at", "to", "for", "with", "within", "from", "by", "as", "and", "or", "than", "be", "been",
    "being", "some", "all", "both", "also", "image", "images", "picture", "patient", "patients", "patient's",
    "evidence", "sign", "signs", "indication", "indications", "appear", "appears", "appearing", "look", "looks", "seem",
    "seems", "show", "shows", "showing", "contain", "contains", "reveal", "reveals", "see", "observe", "detect",
    "identify", "visualize", "demonstrate", "demonstrates", "exhibit", "exhibits", "located", "indicate", "indicates",
    "according", "based", "considered", "described", "suggest", "suggests", "significant", "clearly", "definite",
    "obvious", "completely", "entirely", "perfectly", "very", "such", "which", "what", "here", "my", "answer", "taken",
    "via", "using", "obtained", "acquired", "performed", "size", "sized", "correct", "true", "yes", "no", "finding",
    "findings", "structure", "structures", "region", "area",
))  # fmt: skip
SILENT = EMPTY | FORWARD | BACKWARD
# Words that say nothing in a statement, but may in a name ("axial plane").
MUTE = SILENT | EXCEPT | FALSE | frozenset((
    "you", "we", "me", "one", "suggestive", "consistent", "indicative", "compatible", "receive", "administer", "had",
    "like", "question", "yeah", "yep", "affirmative", "done", "made", "think",
    "believe", "say", "any", "view", "plane", "slice", "section", "scan",
    "scans", "film",
    "study", "projection", "orientation", "shape", "caliber", "calibre", "positive", "longer", "yet", "so", "too",
    "thus", "therefore", "indeed", "actually", "currently", "now", "type", "appearance", "presence", "diagnosis",
    "exam", "examination", "imaging", "limits", "range", "case", "rather", "instead", "opposed", "side", "sides",
    "sided", "everything", "overall", "field", "part", "features", "feature", "further", "identifiable", "given",
    "administered", "received", "used", "injected",
))  # fmt: skip
# Replies without content that mean yes: two words in a row, or all words.
AFFIRMED = frozenset((
    "it is", "they are", "there is", "there are", "it does", "they do", "it was", "it appears", "it has", "think so",
    "believe so", "is correct", "is true",
))  # fmt: skip
AFFIRMING = frozenset(("present", "correct", "true", "seen", "positive", "visible", "affirmative", "yeah", "yep"))
# Denied with one of these, a thing may still be there ("no other fracture"); "only one" is not what was asked for.
OTHERS = frozenset(
    (
        "other",
        "additional",
        "further",
        "another",
        "new",
        "large",
        "small",
        "more",
        "tension",
        "massive",
        "gross",
        "displaced",
        "complete",
    )
)
PART = frozenset(("only", "one", "single"))
BREAKS = frozenset((
    "but", "however", "although", "though", "while", "whereas", "because", "since", "which", "meaning", "indicating",
))  # fmt: skip
RESTARTS = frozenset(("the", "there", "it", "they", "this", "a", "an", "is", "are", "shows", "appears", "with"))
VERBS = frozenset((
    "is", "are", "was", "were", "has", "have", "shows", "show", "appears", "appear", "with", "there", "suggests",
    "suggest", "indicates", "confirms", "appears", "contains", "reveals", "demonstrates",
))  # fmt: skip
# A statement that begins with one of these goes on about the one before it ("It is in the liver.").
CONTINUES = frozenset(("it", "they", "this", "these", "is", "are", "was", "were", "with", "in", "on", "at", "appears"))
ABOUT = frozenset(("includes", "include", "does", "do", "shows", "show"))  # "which is ..." describes something else
PLACES = frozenset((
    "in", "on", "at", "within", "near", "around", "under", "above", "below", "between", "along", "beneath", "outside",
    "inside", "adjacent", "behind", "over",
))  # fmt: skip
NEAR = frozenset((
    "near", "around", "above", "below", "along", "outside", "adjacent", "behind", "over", "beside", "next",
))  # fmt: skip
ORGANS = frozenset((
    "heart", "lung", "liver", "spleen", "kidney", "brain", "pancreas", "stomach", "bowel", "colon", "bladder", "aorta",
    "gallbladder", "spine", "skull", "rib", "appendix", "esophagus", "trachea", "mediastinum", "diaphragm", "ventricle",
    "cerebellum", "femur", "pelvis", "breast", "thyroid", "prostate", "uterus", "clavicle", "hip", "knee", "sulcus",
))  # fmt: skip
STATES = frozenset((
    "enlarged", "dilated", "thickened", "widened", "displaced", "deviated", "shifted", "blunted", "elevated",
    "collapsed", "compressed", "swollen", "fractured", "obstructed", "obscured", "flattened", "hyperinflated",
    "atrophied", "reduced", "shrunken", "inflamed", "atrophic", "distended", "hypertrophied", "calcified", "cirrhotic",
))  # fmt: skip
LESIONS = frozenset((
    "mass", "lesion", "nodule", "tumor", "tumour", "effusion", "fracture", "hemorrhage", "pneumothorax", "pneumonia",
    "infarct", "infarction", "opacity", "edema", "consolidation", "cyst", "atelectasis", "abscess", "aneurysm",
    "infiltrate", "bleed", "metastasis", "metastases", "stone", "calcification", "hematoma", "stroke",
    "fluid", "infection",
))  # fmt: skip
MEANINGS = {  # of words and of stems
    **dict.fromkeys(("unremarkable", "healthy", "clear"), "normal"),
    **dict.fromkeys(
        ("abnormality", "abnormalities", "abnormally", "pathology", "pathologies", "pathologic", "pathological",
         "disease", "diseased", "unhealthy", "irregular", "irregularity", "wrong", "anomaly", "anomalies"), "abnormal",
    ),
    **dict.fromkeys(("x-ray", "xray", "radiograph", "cxr", "x-rays", "radiographs"), "x-ray"),
    **dict.fromkeys(("mr", "mris"), "mri"),
    "transverse": "axial", "saggital": "sagittal", "broken": "fractur", "shift": "dev", "shifted": "dev",
    "cardiac": "heart", "pulmonary": "lung", "hepatic": "liver", "renal": "kidn", "cerebral": "brain",
    "hemidiaphragm": "diaphragm", "beneath": "under", "noncontrast": "non-contrast", "tumour": "tumor",
    "arterial": "arterial", "distent": "distend", "normally": "normally",
}  # fmt: skip
GROUPS = (
    ("left", "right"), ("upper", "lower"), ("anterior", "posterior"), ("superior", "inferior"), ("medial", "lateral"),
    ("axial", "coronal", "sagittal"), ("ct", "mri", "x-ray", "ultrasound"), ("pa", "ap"), ("male", "female"),
    ("benign", "malignant"), ("hyperintense", "hypointense"), ("hyperdense", "hypodense"), ("increased", "decreased"),
    ("acute", "chronic"), ("solid", "cystic"), ("unilateral", "bilateral"), ("inside", "outside"), ("t1", "t2"),
    ("intact", "fractur"), ("midline", "dev"), ("central", "dev"), ("multiple", "single"), ("multiple", "solitary"),
    ("larger", "smaller"), ("bigger", "smaller"), ("higher", "lower"), ("wider", "narrower"), ("thicker", "thinner"),
)  # fmt: skip
SIDES = frozenset(("left", "right", "upper", "lower"))
SCANS = frozenset(("x-ray", "ct", "mri", "ultrasound", "weighted"))
# Several words of one meaning: a part of them that is looked for first, and what stands for them.
LONG = (
    ("tomography", re.compile(r"\bcomputed tomography(?: \(ct\))?"), "ct"),
    ("resonance", re.compile(r"\bmagnetic resonance(?: imag(?:ing|e))?(?: \(mri\))?"), "mri"),
    ("within normal", re.compile(r"\bwithin normal(?: size)?(?: limits?| range)?"), "normal"),
    ("within the normal", re.compile(r"\bwithin the normal(?: size)?(?: limits?| range)?"), "normal"),
    ("than normal", re.compile(r"\b(?:larger|bigger) than normal"), "enlarged"),
    ("than normal", re.compile(r"\bsmaller than normal"), "reduced"),
    ("than normal", re.compile(r"\bwider than normal"), "widened"),
    ("not normal", re.compile(r"\bnot normal\b"), "abnormal"),
    ("not abnormal", re.compile(r"\bnot abnormal\b"), "normal"),
    ("cardiac s", re.compile(r"\bcardiac (?:silhouette|shadow|size)"), "heart"),
    ("cardiomegaly", re.compile(r"\bcardiomegaly"), "enlarged heart"),
    ("mass effect", re.compile(r"\bmass effect"), "masseffect"),
    ("(s)", re.compile(r"\(s\)"), ""),
    (" lobe", re.compile(r"\b(?:upper|lower|middle) lobes?"), r"\g<0> lung"),
    ("intravenous", re.compile(r"\bintravenous"), "iv"),
    ("gastrointestinal", re.compile(r"\bgastrointestinal"), "gi"),
)
# Longest first. NLTK's stemmers do the same, but their import takes longer than a small run.
ENDINGS = (
    "ications", "ication", "ations", "ation", "ments", "ment", "ities", "ity", "ions", "ion", "ings", "ing", "ied",
    "ies", "ive", "ic", "al", "um", "ed", "es", "ly", "s",
)  # fmt: skip
EXCLUDES = {
    word: frozenset(rival for group in GROUPS if word in group for rival in group) - {word}
    for group in GROUPS
    for word in group
}
