"""Yes or no read against the question: hand-judged answers in the words of models, with what makes each doubtful."""

from __future__ import annotations

import time

import pytest

from mmedpo.data.statements import asks_yes_no
from mmedpo.data.yes_no import is_echo, says

FRACTURE = "Is there a fracture?"
ABNORMAL = "Does the brain look abnormal?"
NORMAL = "Is the liver normal?"

CASES = [  # question, answer, what a person reads in it
    # plain words
    (FRACTURE, "Yes", "yes"),
    (FRACTURE, "no.", "no"),
    (FRACTURE, "The answer is yes.", "yes"),
    (FRACTURE, "Yes, of the left rib", "yes"),
    (FRACTURE, "No, it is intact", "no"),
    (FRACTURE, "Yes, there is a fracture, but no displacement.", "yes"),
    (FRACTURE, "Yes, there is no fracture.", None),
    (FRACTURE, "No, the x-ray shows a fracture.", None),
    (NORMAL, "Yes, the liver is normal with no abnormality.", "yes"),
    ("What organ is shown?", "No", "no"),
    # statements that repeat what is asked for, denied or not
    (FRACTURE, "There is no sign of a fracture.", "no"),
    (FRACTURE, "There is a fracture of the rib.", "yes"),
    (FRACTURE, "A fracture is not seen.", "no"),
    (FRACTURE, "A fracture is clearly seen.", "yes"),
    (FRACTURE, "The image doesn't show any fracture", "no"),
    (FRACTURE, "No masses, fractures or foreign bodies.", "no"),
    (FRACTURE, "There are no masses, and there is a fracture.", "yes"),
    (FRACTURE, "Fractures are absent.", "no"),
    (FRACTURE, "The bone is free of fractures.", "no"),
    (FRACTURE, "A fracture was ruled out.", "no"),
    (FRACTURE, "There is no doubt that there is a fracture.", "yes"),
    (FRACTURE, "There is no other fracture.", None),
    (FRACTURE, "Small fracture of the rib", "yes"),
    ("Are both kidneys present?", "Only one kidney is present.", "no"),
    (FRACTURE, "The lungs are clear.", None),
    (FRACTURE, "The scan shows a clear fracture.", "yes"),
    ("Is the skull fractured?", "The scan shows a clear skull fracture.", "yes"),
    ("Is the basilar artery in this image?", "The basilar artery is not located here; arteries are elsewhere.", "no"),
    ("Is the heart enlarged?", "The heart is not enlarged.", "no"),
    ("Is the heart enlarged?", "There is enlargement of the heart", "yes"),
    ("Is the heart enlarged?", "The heart is normal in size.", "no"),
    ("Is the heart enlarged?", "The heart is large.", None),
    ("Is the tumor enhancing?", "The tumor is non-enhancing.", "no"),
    ("Does the stomach appear in the image?", "The stomach does not appear in the image.", "no"),
    ("Does the picture contain the liver?", "The image shows the spleen rather than the liver.", "no"),
    ("Are the temporal lobes involved?", "The temporal lobes are spared.", "no"),
    ("Is there a mass in the liver?", "There is no liver in view.", None),
    ("Is there a mass in the liver?", "A mass is seen in the liver.", "yes"),
    ("Is there a mass in the liver?", "There is a mass, but not in the liver.", None),
    ("Is there a mass in the lung?", "There is no mass in the heart, the lung has a mass.", "yes"),
    ("Is/Are there edema in the patient's brain?", "Edema is present in the brain.", "yes"),
    ("Was contrast given?", "Contrast was not given", "no"),
    # normal and abnormal
    (ABNORMAL, "It appears normal.", "no"),
    (ABNORMAL, "The brain MRI appears to be normal.", "no"),
    (ABNORMAL, "The brain is not normal.", "yes"),
    (ABNORMAL, "No significant abnormality", "no"),
    (ABNORMAL, "The heart appears normal.", None),
    (NORMAL, "The liver is unremarkable.", "yes"),
    (NORMAL, "There is pathology in the liver.", "no"),
    (NORMAL, "not considered pathologic", "yes"),
    (NORMAL, "The liver is smaller than normal.", None),
    ("Are liver findings normal?", "They are considered normal", "yes"),
    ("Is this image abnormal?", "The image shows a mass.", "yes"),
    ("Is there any abnormality?", "There is nothing abnormal.", "no"),
    ("Is the abnormality hyperintense?", "The abnormality is not hyperintense.", "no"),
    ("Are the lungs clear?", "The lungs are not clear.", "no"),
    ("Are the lungs clear?", "There is clear evidence of pneumonia in the lungs.", "no"),
    ("Is the heart a normal size?", "The heart is enlarged.", "no"),
    ("Is the liver abnormal?", "The liver is enlarged.", "yes"),
    # what excludes it
    ("Is this an MRI?", "This is a computed tomography (CT) scan.", "no"),
    ("Is this a transverse plane?", "This is a sagittal plane, which is vertical.", "no"),
    ("Is this a study of the chest?", "This is a study of the chest.", "yes"),
    ("Does the picture contain the liver?", "It is a scan of the abdomen, which includes the liver.", "yes"),
    (
        "Does the picture contain the organ that stores urine?",
        "No bladder is shown, which is the organ that stores urine.",
        None,
    ),
    ("Is the rib broken?", "The rib appears to be fractured.", "yes"),
    ("Is this a T2 weighted image?", "This is a T1-weighted image.", "no"),
    ("Is the mass on the left?", "The mass is on the right.", "no"),
    ("Is the mass on the left?", "The mass is not on the right.", None),
    ("Is this a CT?", "This is an MRI.", "no"),
    ("Is this an axial view?", "It is a coronal view", "no"),
    ("Is there a right pleural effusion?", "There is a left pleural effusion", "no"),
    # short ones
    (FRACTURE, "There is.", "yes"),
    (FRACTURE, "None seen", "no"),
    (FRACTURE, "It is not present.", "no"),
    (FRACTURE, "present", "yes"),
    # hedges and refusals
    (FRACTURE, "There may be a fracture.", None),
    (FRACTURE, "I cannot determine whether there is a fracture.", None),
    (FRACTURE, "No, I am unable to tell.", None),
    (FRACTURE, "It is not possible to give a yes or no answer.", None),
    (FRACTURE, "A fracture cannot be excluded.", None),
    (FRACTURE, "I do not know", None),
    (FRACTURE, "There is no definitive data regarding a fracture.", None),
    ("Is the lesion enhancing?", "The lesion is not solely enhancing.", "yes"),
    # echoes and remarks about the task
    (FRACTURE, "Is there a fracture?", None),
    (FRACTURE, "a fracture", None),
    (FRACTURE, "yes or no", None),
    ("Are the air fluid levels located in colon?", "The air fluid levels located in colon.", None),
    ("Are the air fluid levels located in colon?", "located in colon", None),
    (FRACTURE, "The correct answer is a yes: the wrong one must be a no.", None),
    (FRACTURE, "The answer is", None),
    (FRACTURE, "", None),
    # questions whose sense is doubtful, or that ask for a choice
    ("Is no lesion present?", "No, there are no lesions", "no"),
    ("Is no lesion present?", "There is a lesion", None),
    ("Are the lines inside or outside of the patient?", "The lines are inside, not outside.", None),
    ("Are the lines inside or outside of the patient?", "Outside", None),
    ("Is there a mass or nodule?", "There is no mass or nodule.", "no"),
    ("Is there a mass or nodule?", "There is no mass.", None),
    ("Where is the fracture?", "There is no fracture.", None),
]


@pytest.mark.parametrize(("question", "answer", "expected"), CASES, ids=[f"{c[1]}-{c[0]}" for c in CASES])
def test_says(question: str, answer: str, expected: str | None) -> None:
    assert says(answer, question) == expected


@pytest.mark.parametrize("text", ["no mass, ", "chest ", "which is ", "in the image ", "not ", "a", "it is\n"])
def test_says_of_a_long_text_takes_no_longer_than_its_length(text: str) -> None:
    begin = time.process_time()
    says(text * 5_000, "Is there a mass?")
    says("A mass is seen.", f"Is there {text * 5_000}?")
    says(text * 2_000, text * 5_000)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Is/Are the lesions ring enhancing ?", True),
        ("In this image, are there masses?", True),
        ("Anything abnormal?", True),
        ("Where is it?", False),
        ("", False),
    ],
)
def test_asks_yes_no(question: str, expected: bool) -> None:
    assert asks_yes_no(question) is expected


def test_is_echo_is_a_piece_of_the_question_of_several_words() -> None:
    assert is_echo("the lungs clear", "Are the lungs clear?") and not is_echo(
        "The lungs are clear", "Are the lungs clear?"
    )
    assert not is_echo("clear", "Are the lungs clear?")
