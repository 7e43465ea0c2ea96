"""Clinically weighted multimodal preference optimization (the paper's section 3.3)."""
