"""Clinically weighted multimodal preference optimisation (the paper's section 3.3)."""
