"""The loopback Hub as what builds on huggingface_hub finds it: datasets, transformers, peft, evaluate, cards."""

from __future__ import annotations

from hub.server import ROOT, Hub

from mmedpo.hub.publish import publish


def test_a_dataset_is_pushed_loaded_and_streamed(hub: Hub) -> None:
    hub.ask("""
        from datasets import Dataset
        for _ in range(2):
            Dataset.from_dict({"a": [1, 2, 3]}).push_to_hub("user/d", private=True)
        say(None)
    """)
    parquet = "data/train-00000-of-00001.parquet"
    assert hub.repo("user/d", "dataset").private and hub.files("user/d", "dataset").keys() == {"README.md", parquet}
    assert hub.sent() == len(hub.files("user/d", "dataset")[parquet])  # once for two pushes
    load = """
        from datasets import load_dataset
        from datasets.exceptions import DatasetNotFoundError
        try:
            say([load_dataset("user/d")["train"]["a"][:], list(load_dataset("user/d", split="train", streaming=True))])
        except DatasetNotFoundError:
            say("not found")
    """
    assert hub.ask(load) == [[1, 2, 3], [{"a": 1}, {"a": 2}, {"a": 3}]]
    assert hub.ask(load, token="") == "not found"


def test_models_processors_and_adapters_are_pushed_and_loaded(hub: Hub) -> None:
    same = hub.ask("""
        import torch
        from peft import LoraConfig, PeftModel, get_peft_model
        from transformers import AutoImageProcessor, AutoModel, BertConfig, BertModel, YolosImageProcessorPil
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        model = BertModel(BertConfig(vocab_size=10, **sizes)).eval()
        model.push_to_hub("user/model", private=True)
        YolosImageProcessorPil(size={"shortest_edge": 7, "longest_edge": 9}).push_to_hub("user/model")
        words = torch.tensor([[1, 2, 3]])
        adapted = get_peft_model(model, LoraConfig(target_modules=["query"], r=2, init_lora_weights=False))
        adapted.push_to_hub("user/adapter")
        again = PeftModel.from_pretrained(AutoModel.from_pretrained("user/model"), "user/adapter").eval()
        edges = AutoImageProcessor.from_pretrained("user/model").size
        with torch.no_grad():
            say([torch.equal(adapted(words)[0], again(words)[0]), edges["shortest_edge"], edges["longest_edge"]])
    """)
    assert same == [True, 7, 9] and hub.repo("user/model").private and not hub.repo("user/adapter").private
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= hub.files("user/model").keys()
    assert hub.repo("user/model").head.files["model.safetensors"].lfs


def test_a_metric_is_published_as_a_space_and_loaded_by_name(hub_here: Hub) -> None:
    """`evaluate` asks `HF_ENDPOINT` for the script at the tag of its own version first, and then at main."""
    publish(ROOT / "eval" / "med_vqa", "user/med_vqa", "metric")
    hub = hub_here
    hub.calls()
    scores = hub.ask("""
        import evaluate
        metric = evaluate.load("user/med_vqa")
        say(metric.compute(predictions=["yes", "no"], references=["yes", "yes"], answer_types=["closed", "closed"]))
    """)
    assert scores["closed_accuracy"] == 0.5
    calls = hub.calls()
    tagged, *others = calls
    assert tagged.startswith("HEAD /spaces/user/med_vqa/resolve/v") and tagged.endswith("/med_vqa.py")
    assert others == [f"{method} /spaces/user/med_vqa/resolve/main/med_vqa.py" for method in ("HEAD", "GET")]


def test_cards_are_checked_pushed_and_read(hub: Hub) -> None:
    told = hub.ask("""
        from huggingface_hub import DatasetCard, ModelCard, metadata_update
        def card(kind, metadata):
            return kind(f"---\\n{metadata}\\n---\\nText.")
        found = []
        for kind in (ModelCard, DatasetCard):
            api.create_repo("card", repo_type=kind.repo_type)
            card(kind, "license: mit").push_to_hub("user/card")
            found.append(kind.load("user/card").data.license)
        metadata_update("user/card", {"license": "apache-2.0"}, overwrite=True)
        found.append(api.model_info("user/card").card_data.license)
        for metadata in ("tags: [1]", "- no mapping"):
            try:
                api.upload_file(repo_id="user/card", path_in_repo="README.md",
                                path_or_fileobj=f"---\\n{metadata}\\n---\\n".encode())
            except ValueError as error:
                found.append(str(error).splitlines()[0])
        say(found)
    """)
    assert told == ["mit", "mit", "apache-2.0", *["Invalid metadata in README.md."] * 2]
    assert hub.files("user/card")["README.md"] == b"---\nlicense: apache-2.0\n---\nText."
