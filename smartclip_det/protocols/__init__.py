"""The protocols: options, scores and stamps, called by the command line and by the MMEngine metrics alike."""
