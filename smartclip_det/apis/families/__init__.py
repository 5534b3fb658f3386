"""Back ends of :class:`Predictor`, one module per model family."""
