"""What a :class:`Predictor` may stand on; one module a family."""
