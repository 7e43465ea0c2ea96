"""Vision-language models, adapters and chat models: load, check, generate."""
