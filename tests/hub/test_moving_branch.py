"""An adapter of the Hub whose branch moves between an interrupted evaluation and its end; over real HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hub.server import Hub
from hub.store import Blob

EVALUATE = """
    from pathlib import Path
    from mmedpo.models.adapters import adapter_contents
    from mmedpo.errors import InputError
    from mmedpo.evaluation.measures import measure
    from mmedpo.evaluation.settings import Run, Settings
    from mmedpo.models.vision_language import VisionLanguageModel

    model, source, output, commit, batches = sys.argv[1:]
    generate, asked = VisionLanguageModel.generate, []

    def limited(self, *given):
        if len(asked) == int(batches):
            raise KeyboardInterrupt
        asked.append(given)
        return generate(self, *given)

    VisionLanguageModel.generate = limited
    settings = Settings(
        model, source=Path(source), split="test", limit=6, adapter="user/adapter",
        max_new_tokens=4, max_new_tokens_report=4, batch_size=2,
    )
    try:
        measure(settings, Run(output=Path(output), resume=True))
        said = "finished"
    except KeyboardInterrupt:
        said = "stopped"
    except InputError as error:
        said = str(error)
    say([said, adapter_contents("user/adapter", commit)])
"""


def adapter(model: Path, folder: Path, seed: int) -> dict[str, bytes]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForImageTextToText.from_pretrained(model), config).save_pretrained(folder)
    return {name: (folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}


@pytest.mark.slow
def test_an_adapter_whose_branch_moved_is_refused_and_a_commit_stays(
    hub: Hub, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    first, second = (adapter(tiny_model, tmp_path / str(seed), seed) for seed in (0, 1))
    repo = hub.put("user/adapter", first)
    words = (EVALUATE, tiny_model, corpus, tmp_path / "out", repo.at("main").oid)
    stopped, contents = hub.ask(*words, 1)
    repo.commit("main", lambda there: there.update({path: Blob(data, False) for path, data in second.items()}), "put")
    refused, pinned = hub.ask(*words, 99)
    assert stopped == "stopped" and "an input was replaced under the same name" in refused
    assert f"adapter user/adapter: {contents[:8]} -> " in refused and pinned == contents
