"""``smartclip-det app``: predictor sources, code snippets and answers (no gradio), and the gradio page."""
