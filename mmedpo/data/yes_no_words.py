"""Words by which yes/no answers and choices are read: hedges, refusals, negations, and what excludes what."""

from __future__ import annotations

import re

from mmedpo.data.text import NEGATIONS

# Replies that decline to say either.
DECLINES = re.compile(
    r"\b(?:unable|impossible|insufficient|not (?:possible|enough|sure|certain|clear whether|specified|mentioned)"
    r"|(?:can ?not|can't|could not|couldn't|difficult to|hard to) (?:\w+ )?"
    r"(?:say|tell|determine|answer|assess|confirm|know|provide|be (?:determined|assessed|excluded|ruled out))"
    r"|no (?:\w+ )?(?:data|information)|(?:do not|don't) know|unsure|uncertain|unknown|depends"
    r"|yes or no|yes/no|no or yes)\b"
)
HEDGES = frozenset((
    "may", "might", "maybe", "perhaps", "possible", "possibly", "probable", "probably", "likely", "unlikely", "if",
    "whether", "suspected", "suspicious", "unclear", "would", "should", "must",
))  # fmt: skip
ASKS = frozenset((
    "is", "are", "was", "were", "do", "does", "did", "can", "could", "has", "have", "had", "will", "any", "anything",
))  # fmt: skip
FORWARD = NEGATIONS | frozenset((
    "no", "none", "non", "lack", "lacks", "lacking", "absence", "fails", "devoid", "excludes", "rather", "instead",
    "incapable",
))  # fmt: skip
LIMITS = frozenset(("only", "solely", "merely", "just", "simply", "doubt"))  # "not only", "no doubt" deny nothing
BACKWARD = frozenset((
    "absent", "excluded", "spared", "resolved", "undetected", "unaffected", "uninvolved", "negative", "missing",
))  # fmt: skip
PRESENCE = frozenset((
    "seen", "visible", "present", "identified", "noted", "evident", "observed", "detected", "demonstrated", "shown",
    "appreciated", "found", "visualized", "visualised", "apparent", "recognized", "there", "depicted", "exist",
    "exists", "obvious", "located", "included",
))  # fmt: skip
SCAN = r"(?:x-?rays?|ct|cts|mri|mris|mr|cxr|ultrasound|radiograph|scan|image|picture|film|study|slice|section|view)"
COMPARED = re.compile(r"\b(?:than|from) (?:its |their |the )?normal\b")  # nothing is called normal there
# Before a noun it says nothing ("a clear fracture"), and else normal ("the lungs are clear").
CLEAR = re.compile(r"\bclear (?!in\b|and\b|of\b|with|bilaterally)(?=\w)")
IN_SCAN = re.compile(rf"\b(?:in|on|from|by|within) (?:this|the|these|that|above)(?: [\w-]+){{0,2}}? {SCAN}s?\b")
A_SCAN = re.compile(
    rf"\b(?:[\w-]+-weighted |chest |brain |head |abdominal |abdomen |axial ){{0,4}}{SCAN}(?: {SCAN}){{0,4}}\b"
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
# Denied with one of these, a thing may still be there ("no other fracture"); "only one" is not what was asked for.
OTHERS = frozenset(("other", "additional", "further", "another", "new", "large", "small", "more", "longer"))
PART = frozenset(("only", "one", "single"))
BREAKS = frozenset((
    "but", "however", "although", "though", "while", "whereas", "because", "since", "which", "meaning", "indicating",
))  # fmt: skip
RESTARTS = frozenset(("the", "there", "it", "they", "this", "a", "an", "is", "are", "shows", "appears", "with"))
VERBS = frozenset(("is", "are", "was", "were", "has", "have", "shows", "show", "appears", "appear", "with", "there"))
ABOUT = frozenset(("includes", "include", "does", "do", "shows", "show"))  # "which is ..." describes something else
PLACES = frozenset(("in", "on", "at", "within", "near", "around", "under", "above", "below", "between", "along"))
STATES = frozenset((
    "enlarged", "dilated", "thickened", "widened", "displaced", "deviated", "shifted", "blunted", "elevated",
    "collapsed", "compressed", "swollen", "fractured", "obstructed", "cardiomegaly", "obscured", "flattened",
))  # fmt: skip
LESIONS = frozenset((
    "mass", "masses", "lesion", "lesions", "nodule", "nodules", "tumor", "tumors", "effusion", "effusions", "fracture",
    "fractures", "hemorrhage", "pneumothorax", "pneumonia", "infarct", "infarction", "opacity", "opacities", "edema",
    "consolidation", "cyst", "cysts", "cardiomegaly", "atelectasis", "abscess", "aneurysm", "infiltrate", "infiltrates",
))  # fmt: skip
MEANINGS = {
    **dict.fromkeys(("unremarkable", "healthy", "normally", "clear"), "normal"),
    **dict.fromkeys(
        ("abnormality", "abnormalities", "abnormally", "pathology", "pathologies", "pathologic", "pathological",
         "disease", "diseased", "unhealthy", "irregular", "irregularity", "wrong", "anomaly", "anomalies"), "abnormal",
    ),
    **dict.fromkeys(("x-ray", "xray", "radiograph", "cxr"), "x-ray"), **dict.fromkeys(("mr", "mris"), "mri"),
    "transverse": "axial", "saggital": "sagittal", "broken": "fractur",
}  # fmt: skip
GROUPS = (
    ("left", "right"), ("upper", "lower"), ("anterior", "posterior"), ("superior", "inferior"), ("medial", "lateral"),
    ("axial", "coronal", "sagittal"), ("ct", "mri", "x-ray", "ultrasound"), ("pa", "ap"), ("male", "female"),
    ("benign", "malignant"), ("hyperintense", "hypointense"), ("hyperdense", "hypodense"), ("increased", "decreased"),
    ("acute", "chronic"), ("solid", "cystic"), ("unilateral", "bilateral"), ("inside", "outside"), ("t1", "t2"),
)  # fmt: skip
SCANS = frozenset(("x-ray", "ct", "mri", "ultrasound", "scan", "view", "section", "weighted", "study", "film"))
LONG = (
    (re.compile(r"\bcomputed tomography(?: \(ct\))?"), "ct"),
    (re.compile(r"\bmagnetic resonance(?: imaging)?(?: \(mri\))?"), "mri"),
)
# Longest first. NLTK's stemmers do the same, but their import takes longer than a small run.
ENDINGS = (
    "ications", "ication", "ations", "ation", "ments", "ment", "ities", "ity", "ions", "ion", "ings", "ing", "ied",
    "ies", "ed", "es", "ly", "s",
)  # fmt: skip
EXCLUDES = {word: frozenset(group) - {word} for group in GROUPS for word in group}
